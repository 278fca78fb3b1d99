// Streams: what was launched, and when it runs.
#pragma once

#include "fastgan_host_harness.h"

namespace fastgan_host {

// A stream other than the default one, as torch's current stream may be.
cudaStream_t test_stream();

// Runs what waits in test_stream(), `times` times over, as a CUDA graph captured from it would be
// replayed. Ends the process if anything waits in another stream.
void run_streams(int times);

// Forgets what waits.
void forget_streams();

}  // namespace fastgan_host
