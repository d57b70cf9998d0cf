/* The engine of packed models: a C interface without dependencies.
 *
 * A model is made of the bytes of `config.json` and of `model.safetensors`; the caller reads or maps the files. The bytes
 * of the weights must stay where they are until tritune_free: the word embeddings are read from there.
 *
 * Every function may be called from several threads at once, with one model, too. A call that fails returns NULL or a
 * number other than 0 and writes one line into `message`, which has room for `room` bytes.
 */

#ifndef TRITUNE_ENGINE_H
#define TRITUNE_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define TRITUNE_API __declspec(dllexport)
#else
#define TRITUNE_API __attribute__((visibility("default")))
#endif

typedef struct tritune_model tritune_model;

/* What a model gives for a batch. */
typedef struct {
  int64_t hidden_size;    /* columns of the last hidden state */
  int64_t outputs;        /* columns of `answers`: labels, 2 for question answering; of a bare encoder hidden_size, the
                             pooler's output where it has one, else the last hidden state */
  int64_t per_token;      /* 1: an answer per token; 0: per sequence */
  int64_t max_tokens;     /* the longest sequence */
  int64_t vocabulary;     /* ids are below it; 0 for image models */
  int64_t channels;       /* of an image; 0 for text models */
  int64_t image_size;     /* pixels of a side */
} tritune_shape;

/* Instruction sets that run here, best first, separated by spaces. */
TRITUNE_API const char* tritune_isas(void);

/* `isa` NULL takes the best one. */
TRITUNE_API tritune_model* tritune_load(const char* config, size_t config_bytes, const uint8_t* weights,
                                        size_t weights_bytes, const char* isa, char* message, size_t room);
TRITUNE_API void tritune_free(tritune_model* model);
TRITUNE_API tritune_shape tritune_describe(const tritune_model* model);
TRITUNE_API const char* tritune_isa(const tritune_model* model);

/* One batch of sequences without padding, one after the other.
 *
 * ids          (tokens)
 * types        (tokens) token types, or NULL for 0
 * positions    (tokens), or NULL for 0, 1, 2, ... in every sequence (RoBERTa and its kin do not count padding tokens)
 * offsets      (sequences + 1): sequence i is the tokens from offsets[i] to offsets[i + 1]; none is empty
 * hidden       (tokens, hidden_size), or NULL
 * answers      (sequences or tokens, outputs), or NULL
 */
TRITUNE_API int tritune_run(const tritune_model* model, const int32_t* ids, const int32_t* types,
                            const int32_t* positions, const int64_t* offsets, int64_t sequences, int threads,
                            float* hidden, float* answers, char* message, size_t room);

/* Images, float (images, channels, image_size, image_size), as the model's processor makes them; the rest as above. */
TRITUNE_API int tritune_run_images(const tritune_model* model, const float* pixels, int64_t images, int threads,
                                   float* hidden, float* answers, char* message, size_t room);

/* One product on its own: what the packed Linear of a model that runs module by module takes.
 *
 * `packed` is (rows, ceil(columns / 4)) as a checkpoint holds it; code = first + step * field.
 */
typedef struct tritune_linear tritune_linear;
TRITUNE_API tritune_linear* tritune_linear_new(const uint8_t* packed, int64_t rows, int64_t columns, int32_t step,
                                               int32_t first, const float* scales, const float* bias, const char* isa,
                                               char* message, size_t room);
TRITUNE_API void tritune_linear_free(tritune_linear* linear);
/* input (tokens, columns) to output (tokens, rows); codes in -largest..largest, values clipped to +-clip. */
TRITUNE_API int tritune_linear_run(const tritune_linear* linear, const float* input, int64_t tokens, float clip,
                                   float largest, int threads, float* output, char* message, size_t room);
/* The exact sums of int8 codes (tokens, columns) and the weight's codes: int32 (tokens, rows). For tests. */
TRITUNE_API int tritune_linear_sums(const tritune_linear* linear, const int8_t* codes, int64_t tokens, int32_t* sums,
                                    char* message, size_t room);

/* Kernels of training: codes of a tensor, in bfloat16, as the quantizers of these names find them.
 *
 * values         (count) float32, or bfloat16 if is_bfloat16; count > 0
 * team, threads  who shares the work out to how many threads; team NULL leaves all of it to the caller
 * codes          (count) bfloat16
 * scale, peak    one number each: value = scale * code; the largest magnitude. Both are NaN if a value is.
 *
 * They return 1 if memory has run out.
 */

/* Calls `work(data)` in up to `threads` threads at once and returns when all calls have; flags are 0. It is OpenMP's
 * GOMP_parallel, so that the threads are those of the torch that trains, which are awake: a thread of our own would take
 * longer to begin than most tensors take. */
typedef void (*tritune_team)(void (*work)(void* data), void* data, unsigned threads, unsigned flags);

TRITUNE_API int tritune_uniform(const void* values, int is_bfloat16, int64_t count, float clip, float largest_code,
                                tritune_team team, int threads, uint16_t* codes, float* scale, float* peak);
TRITUNE_API int tritune_ternary(const void* values, int is_bfloat16, int64_t count, float clip, float threshold_factor,
                                tritune_team team, int threads, uint16_t* codes, float* scale, float* peak);

#ifdef __cplusplus
}
#endif
#endif
