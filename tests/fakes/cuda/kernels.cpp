// kernels/lookup/nearest.cu, kernels/cuda/rows.cu, segments.cu and residual.cu as a library for a CPU. KERNELS, from the command line, lists them: KERNEL(plan_all) KERNEL(...)
#include "cuda_shim.h"
#include "tensor_cores.h"

#include "nearest.cu"
#include "residual.cu"
#include "rows.cu"
#include "segments.cu"

namespace {

const std::vector<shim::Kernel>& kernels() {
#define KERNEL(name) shim::described<name>(#name, name),
  static const std::vector<shim::Kernel> all = {KERNELS};
  return all;
}

const shim::Kernel* found(const char* name) {
  for (const shim::Kernel& kernel : kernels()) {
    if (kernel.name == name) return &kernel;
  }
  return nullptr;
}

}  // namespace

// The types of a kernel's parameters, mangled, a space after each; null if there is no such kernel.
extern "C" const char* shim_signature(const char* name) {
  const shim::Kernel* kernel = found(name);
  return kernel ? kernel->signature.c_str() : nullptr;
}

// Runs a kernel; returns what went wrong, or an empty text.
extern "C" const char* shim_launch(const char* name, unsigned blocks, unsigned threads, unsigned shared_bytes,
                                   void** arguments, unsigned schedule) {
  static std::string result;
  const shim::Kernel* kernel = found(name);
  if (threads == 0 || threads > shim::kMaxThreads || threads % shim::kLanes || blocks == 0) {
    return "a grid that cannot be launched";
  }
  if (shared_bytes > shim::kShared) return "more shared memory than there is";
  // Everything past what was asked for stays NaN: reading it shows, and writing it is found below.
  static const auto run = [](void* pair) {
    const auto& [what, with] = *static_cast<std::pair<const shim::Kernel*, void**>*>(pair);
    what->run(with);
  };
  std::pair<const shim::Kernel*, void**> what{kernel, arguments};
  shim::body = run;
  shim::body_arguments = &what;
  shim::run_grid(blocks, threads, schedule);
  if (shim::failure.empty()) {
    for (size_t i = shared_bytes; i < shim::kShared; ++i) {
      if (shim::dynamic_shared[i] != 0xff) {
        shim::failure = "shared memory past what was asked for is written";
        break;
      }
    }
  }
  result = shim::failure;
  return result.c_str();
}
