#include <stdint.h>

#define CAIRN_WIDE_CHUNK 65536

// Whether this processor has what cairn_wide_chunk needs.
int cairn_wide_supported(void);

// The keyed BLAKE3 of exactly CAIRN_WIDE_CHUNK bytes.
void cairn_wide_chunk(uint8_t out[32], const uint8_t in[CAIRN_WIDE_CHUNK], const uint8_t key[32]);
