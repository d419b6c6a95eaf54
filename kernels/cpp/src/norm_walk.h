// How lane_norm goes through an activation: lanes, chunks of a lane, tiles of a chunk.
//
// Channels-first: a chunk is a group of channels with all samples of a lane, small enough to stay in
// the second-level cache between the statistics and the normalisation. Channels-last: a chunk is a
// run of samples with all channels; statistics of the chunks are merged, then each is normalised,
// a few lanes at a time so that the last-level cache helps. The partition depends on the shape
// alone, and so do all sums.
#pragma once

#include <algorithm>

#include "ops.h"
#include "tensor.h"

namespace fula {

struct NormWalk {
  i64 lanes, batch, channels, positions;
  bool last;
  i64 bytes;            // of one element
  i64 group, run;       // channels, samples of a chunk
  i64 tile_samples, tile_positions;

  NormWalk(const Activation &x, i64 lane_count, bool channels_last)
      : lanes(lane_count), batch(lane_count ? x.samples / lane_count : 0), channels(x.channels),
        positions(x.positions), last(channels_last), bytes(element_size(x.dtype)) {
    const i64 row = std::max<i64>(1, last ? channels : positions);
    group = last ? channels : std::clamp<i64>(1024 / row, 1, kTileChannels);
    group = std::max<i64>(1, std::min(group, channels));
    run = last ? std::max<i64>(1, 65536 / std::max<i64>(1, sample())) : std::max<i64>(1, batch);
    // Elements of a tile: few to a channel, where sums are taken in float.
    const i64 elements = last ? std::clamp<i64>(256 * group, 1024, 16384)
                              : std::clamp<i64>(2048 * group, 4096, 16384);
    tile_positions = std::clamp<i64>(elements / group, 1, std::max<i64>(1, positions));
    tile_samples = tile_positions < positions ? 1 : std::max<i64>(1, elements / (group * positions));
  }

  i64 sample() const { return channels * positions; }
  i64 lane() const { return batch * sample(); }
  double rows() const { return static_cast<double>(batch * positions); }
  i64 chunks() const {
    return last ? (batch + run - 1) / run : (channels + group - 1) / group;
  }
  // Lanes whose chunks are walked together, statistics first.
  i64 lanes_at_once() const {
    return std::max<i64>(1, (i64{8} << 20) / std::max<i64>(1, lane() * bytes));
  }

  i64 first_channel(i64 chunk) const { return last ? 0 : chunk * group; }
  i64 chunk_channels(i64 chunk) const {
    return last ? channels : std::min(group, channels - chunk * group);
  }

  // f(tile, first sample, element offset in the lane) for every tile of a chunk.
  template <class F> void tiles(i64 chunk, const F &f) const {
    const i64 from = last ? chunk * run : 0, to = std::min(batch, from + run);
    const i64 c = first_channel(chunk);
    for (i64 b = from; b < to; b += tile_samples)
      for (i64 p = 0; p < positions; p += tile_positions) {
        const Tile tile = {std::min(tile_samples, to - b), chunk_channels(chunk),
                           std::min(tile_positions, positions - p), sample(),
                           last ? channels : positions};
        f(tile, b, b * sample() + (last ? p * channels + c : c * positions + p));
      }
  }
};

}  // namespace fula
