// A made-up accelerator for torch: two devices whose streams run behind the host, on a clock that is a little fast.
//
// Operators are computed at once, by the CPU. `made_up_work` gives a stream something to do for a time, and events pass
// once their stream has done all that was recorded before.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

constexpr DeviceType kType = DeviceType::PrivateUse1;
constexpr int kDevices = 2, kStreams = 4;
constexpr double kDrift = 1.001;

struct Event {
  int64_t passed;
};

std::mutex lock;
int64_t busy_until[kDevices][kStreams];
thread_local DeviceIndex current = 0;
thread_local int stream_of[kDevices];
bool timed_events = true;

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void wait_until(int64_t time) {
  while (now() < time) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr DeviceType static_type = kType;
  DeviceType type() const override { return kType; }
  Device exchangeDevice(Device device) const override {
    Device before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return Device(kType, current); }
  void setDevice(Device device) const override {
    if (device.index() >= 0) current = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override { setDevice(device); }
  Stream getStream(Device device) const override {
    DeviceIndex index = device.has_index() ? device.index() : current;
    return Stream(Stream::UNSAFE, Device(kType, index), stream_of[index]);
  }
  Stream getDefaultStream(Device device) const override { return Stream(Stream::DEFAULT, device); }
  Stream getNewStream(Device device, int) const override { return Stream(Stream::UNSAFE, device, 1); }
  Stream exchangeStream(Stream stream) const override {
    Stream before = getStream(stream.device());
    stream_of[stream.device_index()] = static_cast<int>(stream.id());
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void** event, const Stream& stream, DeviceIndex, c10::EventFlag) const override {
    TORCH_CHECK(timed_events, "this accelerator has no timed events");
    std::lock_guard<std::mutex> held(lock);
    if (*event == nullptr) *event = new Event;
    int64_t& until = busy_until[stream.device_index()][stream.id()];
    until = std::max(until, now());
    static_cast<Event*>(*event)->passed = until;
  }
  void block(void* event, const Stream& stream) const override {
    std::lock_guard<std::mutex> held(lock);
    int64_t& until = busy_until[stream.device_index()][stream.id()];
    until = std::max(until, static_cast<Event*>(event)->passed);
  }
  bool queryEvent(void* event) const override { return event == nullptr || static_cast<Event*>(event)->passed <= now(); }
  void synchronizeEvent(void* event) const override { wait_until(static_cast<Event*>(event)->passed); }
  void destroyEvent(void* event, DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  double elapsedTime(void* from, void* to, DeviceIndex) const override {
    TORCH_CHECK(queryEvent(from) && queryEvent(to), "read before the device has passed it");
    double ns = static_cast<double>(static_cast<Event*>(to)->passed - static_cast<Event*>(from)->passed);
    return static_cast<float>(ns * kDrift / 1e6);
  }
  void synchronizeDevice(DeviceIndex device) const override {
    for (int64_t until : busy_until[device]) wait_until(until);
  }
  bool queryStream(const Stream& stream) const override {
    return busy_until[stream.device_index()][stream.id()] <= now();
  }
  void synchronizeStream(const Stream& stream) const override {
    wait_until(busy_until[stream.device_index()][stream.id()]);
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  void setCurrentDevice(DeviceIndex device) const override { current = device; }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    DeviceIndex before = current;
    current = device;
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override { return exchangeDevice(device); }
};

c10::CachingDeviceAllocator::DeviceStats stats[kDevices];

struct Allocation {
  size_t size;
  DeviceIndex device;
};

constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

void release(void* data) {
  auto* header = reinterpret_cast<Allocation*>(static_cast<char*>(data) - 64);
  stats[header->device].allocated_bytes[kAll].decrease(header->size);
  free(header);
}

struct Allocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t size) override {
    void* memory = nullptr;
    TORCH_CHECK(posix_memalign(&memory, 64, size + 64) == 0, "out of memory");
    *static_cast<Allocation*>(memory) = {size, current};
    stats[current].allocated_bytes[kAll].increase(size);
    void* data = static_cast<char*>(memory) + 64;
    return {data, data, &release, Device(kType, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex device) override { return stats[device]; }
  void resetAccumulatedStats(DeviceIndex) override {}
  void resetPeakStats(DeviceIndex device) override { stats[device].allocated_bytes[kAll].reset_peak(); }
};

Allocator allocator;

struct Registered {
  Registered() {
    c10::SetAllocator(kType, &allocator);
    at::RegisterPrivateUse1HooksInterface(new Hooks);
  }
} registered;

Device device_of(std::optional<Device> device) {
  return device.has_value() && device->has_index() ? *device : Device(kType, current);
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(device_of(device));
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(device_of(device));
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor on_cpu(const at::Tensor& tensor) {
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) { return copy_from(from, to, false); }

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

}  // namespace

extern "C" {

void made_up_work(int device, int64_t ns) {
  std::lock_guard<std::mutex> held(lock);
  int64_t& until = busy_until[device][stream_of[device]];
  until = std::max(until, now()) + ns;
}

void made_up_timed_events(int available) { timed_events = available != 0; }
}
