/* Stamps of calls on a device: timed events on the call's stream, recorded and read without Python code.

   Events are made and recorded once beforehand, and used again once they are read, a few at each stamp, so that nothing
   waits and no reading pauses the run. They are handles of the CUDA runtime, or of one with the same functions such as
   HIP, which are called by address; or objects with the methods of torch.Event, for every other accelerator.

   Which calls are stamped: all of a frame in `every`, and of the other frames those of the first `levels` levels. `every` is chosen
   from what the stamps of the first frames took. device_stamps.py is the same in Python. */

#ifndef TALKERVIZ_DEVICE_STAMPS_H
#define TALKERVIZ_DEVICE_STAMPS_H

#include "platform.h"

typedef struct DeviceStamps DeviceStamps;

/* Facts of a call at its entry; at its exit `depth` alone is read. */
typedef struct {
  int depth;           /* number of open calls around it */
  int32_t module;      /* number of its module */
  int tensor_device;   /* index of the device of its first tensor on an accelerator; -1 for none */
  int64_t frame;       /* -1 for none */
  int64_t recorder_ns; /* time that the recorder has taken on this thread so far */
} StampedCall;

/* Stamps the entry or exit of a call on thread `thread`. Returns -1 only for an exception to be propagated. */
int device_stamp(DeviceStamps *stamps, Py_ssize_t thread, int entry, const StampedCall *call);

/* Stamps the begin or end of a pause of the recorder inside calls. Returns as device_stamp. */
int device_pause(DeviceStamps *stamps, Py_ssize_t thread, int begins);

/* Adds the type `DeviceStamps` to the module; returns it, or NULL. */
PyTypeObject *device_stamps_type(PyObject *module);

#endif
