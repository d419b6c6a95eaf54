"""From files to pixels: trees of files, decoders, the cache of decoded sets."""
