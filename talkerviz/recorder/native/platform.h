/* Platform differences: the monotonic clock, and the keyword for thread-local storage. */

#ifndef TALKERVIZ_PLATFORM_H
#define TALKERVIZ_PLATFORM_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#if defined(_MSC_VER)
#define THREAD_LOCAL __declspec(thread)
#else
#define THREAD_LOCAL _Thread_local
#endif

/* Nanoseconds on the clock of Python's time.perf_counter_ns, so that times from C and from Python are comparable. */
#if PY_VERSION_HEX >= 0x030D0000
static inline int64_t clock_ns(void) {
  PyTime_t time;
  return PyTime_PerfCounterRaw(&time) < 0 ? 0 : (int64_t)time;
}
#elif defined(_WIN32)
#include <windows.h>
static inline int64_t clock_ns(void) {
  static LARGE_INTEGER frequency;
  LARGE_INTEGER ticks;
  if (frequency.QuadPart == 0) QueryPerformanceFrequency(&frequency);
  QueryPerformanceCounter(&ticks);
  /* Whole seconds separately: ticks * 1e9 would overflow within a day. */
  return ticks.QuadPart / frequency.QuadPart * 1000000000 +
         ticks.QuadPart % frequency.QuadPart * 1000000000 / frequency.QuadPart;
}
#elif defined(__APPLE__)
#include <time.h>
static inline int64_t clock_ns(void) { return (int64_t)clock_gettime_nsec_np(CLOCK_UPTIME_RAW); }
#else
#include <time.h>
static inline int64_t clock_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}
#endif

#endif
