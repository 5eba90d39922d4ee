/* A transformer that speaks on a CPU: a frame, a whole sequence or a product in one call, and the draws between frames.
 *
 * A call is a list of phases, made by frames.py (once an utterance), sequence.py or matrix.py beside this file: products
 * with a matrix, attention, sums of rows. Each phase is cut into chunks, which threads take one after the other; a phase begins when the one before is done. A thread
 * that the system has put aside holds up nobody who does not wait for a chunk of it, and the thread that calls can do
 * everything alone, so that a busy machine is slow by what it lacks and no more.
 *
 * Weights lie in blocks of 16 outputs, input by input, in half precision, 8 or 4 bits; keys and values in half precision.
 * All sums are float32, or exact integers. A row's numbers do not depend on the rows beside it.
 *
 * Needs x86 with AVX2, FMA and F16C, POSIX threads, and GCC or Clang. Whoever has none of these uses PyTorch.
 */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__x86_64__)
#error "frames.c is for x86-64; valle runs without it"
#endif

int valle_can_run(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include <immintrin.h>

#define UNROLL _Pragma("GCC unroll 24")
#define ALWAYS static inline __attribute__((always_inline))

enum { BLOCK = 16, GROUP = 32, COLUMNS = 32, PART = 48 /* queries of a chunk */ };
enum { MOST_ROWS = 6, MOST_ROWS_INT8 = 4, MOST_ROWS_INT4 = 3, MOST_QUERIES = 3 }; /* sums that registers have room for */
enum { AHEAD = 2048 }; /* bytes that weights are asked for before they are used */
enum { LINEAR = 0, ATTEND = 1, ROWS = 2, QUANTISE = 3, KEEP = 4, ATTEND_ALL = 5 };
enum { FP16 = 0, INT8 = 1, INT4 = 2 };
enum { NOTHING = 0, GELU = 1, RELU = 2 };

/* Rows of numbers: row r of column n begins at data + r * row + n * column. */
typedef struct {
    float *data;
    int64_t row, column;
} Rows;

typedef struct {
    int32_t kind;
    int32_t n_in, n_out; /* n_in a multiple of 8 (INT8) or GROUP (INT4) */
    const void *weights; /* n_out rounded up to BLOCK, as below; see frames.py */
    const void *scales;  /* INT8: float [n_out]; INT4: half [n_out / BLOCK][n_in / GROUP][BLOCK] */
    const float *zeros;  /* INT8, INT4: [n_out] what inputs of 0 would give, since these are 128 as 8-bit numbers */
    const float *bias;   /* [n_out], or NULL */
} Matrix;

typedef struct {
    int32_t kind, activation;
    Rows in, out, residual; /* out = residual (where its data is not NULL) + gain * activation(...) */
    int32_t n, n_chunks;    /* numbers of a row of ``in``; chunks of this phase */
    float gain, eps;
    const float *norm_weight, *norm_bias; /* [n]: a layer norm of ``in``; NULL: none */
    Matrix matrix;
    void *quantised; /* of QUANTISE; LINEAR reads it where it is not NULL, and else makes it of ``in`` */
    /* ATTEND: in [rows][queries, keys, values], out [rows][queries] */
    const uint16_t *keys, *values; /* shared [B][H][ceil(n / 32)][d][32] and [B][H][n][d], n = n_shared_most */
    uint16_t *own_keys, *own_values; /* likewise [rows][H], for own_most columns */
    /* KEEP, ATTEND_ALL: whole sequences of n_copies rows each; KEEP writes own_keys and own_values, of B rows, which are the
     * keys and values of ATTEND_ALL. is_causal: a place sees those before it; hidden [B][n_copies rounded up to 32]: is
     * added to scores, or NULL */
    const float *hidden;
    int32_t is_causal;
} Phase;

typedef struct {
    int32_t n_phases, n_rows, n_copies, n_heads, n_grouped, d;
    int32_t n_shared_most, own_most;
    const int32_t *n_shared; /* [n_rows / n_copies] columns of each that count */
    const Phase *phases;
    float *scratch; /* of the calling thread, scratch_floats of them; 64-byte aligned */
    int64_t scratch_floats;
} Frame;

/* Functions */

ALWAYS __m256 exp_8(__m256 x) { /* relative error below 2e-7; 0 below -87 */
    const __m256 low = _mm256_set1_ps(-87.0f);
    __m256 is_low = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
    x = _mm256_min_ps(_mm256_max_ps(x, low), _mm256_set1_ps(88.0f));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    x = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    x = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), x);
    __m256 y = _mm256_set1_ps(1.9875691500e-4f);
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(1.3981999507e-3f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(8.3334519073e-3f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(4.1665795894e-2f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(1.6666665459e-1f));
    y = _mm256_fmadd_ps(y, x, _mm256_set1_ps(5.0000001201e-1f));
    y = _mm256_fmadd_ps(y, _mm256_mul_ps(x, x), _mm256_add_ps(x, _mm256_set1_ps(1.0f)));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(is_low, _mm256_mul_ps(y, _mm256_castsi256_ps(power)));
}

ALWAYS __m256 gelu_8(__m256 x) { /* x * Phi(x); erf by Abramowitz and Stegun 7.1.26, error below 1.5e-7 */
    const __m256 sign_bit = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
    __m256 z = _mm256_mul_ps(x, _mm256_set1_ps(0.70710678f));
    __m256 a = _mm256_andnot_ps(sign_bit, z);
    __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(a, _mm256_set1_ps(0.3275911f), one));
    __m256 y = _mm256_set1_ps(1.061405429f);
    y = _mm256_fmadd_ps(y, t, _mm256_set1_ps(-1.453152027f));
    y = _mm256_fmadd_ps(y, t, _mm256_set1_ps(1.421413741f));
    y = _mm256_fmadd_ps(y, t, _mm256_set1_ps(-0.284496736f));
    y = _mm256_fmadd_ps(y, t, _mm256_set1_ps(0.254829592f));
    y = _mm256_mul_ps(_mm256_mul_ps(y, t), exp_8(_mm256_sub_ps(_mm256_setzero_ps(), _mm256_mul_ps(a, a))));
    __m256 erf = _mm256_or_ps(_mm256_sub_ps(one, y), _mm256_and_ps(sign_bit, z));
    __m256 half = _mm256_mul_ps(x, _mm256_set1_ps(0.5f));
    return _mm256_fmadd_ps(half, erf, half);
}

ALWAYS float sum_8(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

ALWAYS __m256 halves_8(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }

/* out = (x - mean) / sqrt(variance + eps) * weight + bias; n a multiple of 8 */
static void layer_norm(const float *x, float *out, int n, const float *weight, const float *bias, float eps) {
    __m256 sum = _mm256_setzero_ps(), squares = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) sum = _mm256_add_ps(sum, _mm256_loadu_ps(x + i));
    __m256 mean = _mm256_set1_ps(sum_8(sum) / (float)n);
    for (int i = 0; i < n; i += 8) {
        __m256 c = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean);
        squares = _mm256_fmadd_ps(c, c, squares);
    }
    __m256 scale = _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_sqrt_ps(_mm256_set1_ps(sum_8(squares) / (float)n + eps)));
    for (int i = 0; i < n; i += 8) {
        __m256 c = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mean), scale);
        _mm256_storeu_ps(out + i, _mm256_fmadd_ps(c, _mm256_loadu_ps(weight + i), _mm256_loadu_ps(bias + i)));
    }
}

/* Products. Each computes the 16 outputs of N blocks for R rows, into sums [N][R][2]. Few rows take several blocks at a
 * time, so that the processor has enough sums to work on; each sum is added up in the same order whatever N and R. */

ALWAYS void product_fp16(int N, int R, const uint16_t *w, const float *x, int64_t row, int n_in, __m256 *sums) {
    __m256 acc[2 * MOST_ROWS];
    UNROLL
    for (int i = 0; i < 2 * N * R; i++) acc[i] = _mm256_setzero_ps();
    for (int k = 0; k < n_in; k++) {
        UNROLL
        for (int n = 0; n < N; n++) {
            const uint16_t *at = w + ((int64_t)n * n_in + k) * BLOCK;
            _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
            __m256 w0 = halves_8(at), w1 = halves_8(at + 8);
            UNROLL
            for (int r = 0; r < R; r++) {
                __m256 v = _mm256_broadcast_ss(x + r * row + k);
                acc[2 * (n * R + r)] = _mm256_fmadd_ps(v, w0, acc[2 * (n * R + r)]);
                acc[2 * (n * R + r) + 1] = _mm256_fmadd_ps(v, w1, acc[2 * (n * R + r) + 1]);
            }
        }
    }
    UNROLL
    for (int i = 0; i < 2 * N * R; i++) sums[i] = acc[i];
}

/* Inputs are 8-bit numbers with a scale for each row, 0 being 128; weights 7-bit ones, since AVX2 adds products of pairs up
 * in 16 bits. A block is [n_in / 4][16][4]. */
ALWAYS void product_int8(int R, const int8_t *w, const float *scales, const float *zeros, const uint8_t *x,
                         const float *x_scales, int n_in, __m256 *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i acc[MOST_ROWS_INT8][2];
    UNROLL
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int k = 0; k < n_in; k += 4) {
        _mm_prefetch((const char *)(w + k * BLOCK) + AHEAD, _MM_HINT_T0);
        __m256i w0 = _mm256_loadu_si256((const __m256i *)(w + k * BLOCK));
        __m256i w1 = _mm256_loadu_si256((const __m256i *)(w + k * BLOCK + 32));
        UNROLL
        for (int r = 0; r < R; r++) {
            int32_t four;
            memcpy(&four, x + (int64_t)r * n_in + k, 4);
            __m256i v = _mm256_set1_epi32(four);
            acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(v, w0), ones));
            acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(_mm256_maddubs_epi16(v, w1), ones));
        }
    }
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int j = 0; j < 2; j++) {
            __m256 sum = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r][j]), _mm256_loadu_ps(scales + 8 * j));
            sum = _mm256_sub_ps(sum, _mm256_loadu_ps(zeros + 8 * j));
            sums[2 * r + j] = _mm256_mul_ps(sum, _mm256_set1_ps(x_scales[r]));
        }
}

/* The same with weights of 0 to 15, less 8, times the scale of their group of 32 inputs. x_sums [R][n_in / 32] are 8 times
 * the sums of the inputs of a group, as 8-bit numbers. A block is [n_in / 4][8][4] bytes, which hold a weight of output i
 * and one of output i + 8. */
ALWAYS void product_int4(int R, const uint8_t *w, const uint16_t *scales, const float *zeros, const uint8_t *x,
                         const float *x_scales, const int32_t *x_sums, int n_in, __m256 *sums) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const int n_groups = n_in / GROUP;
    UNROLL
    for (int r = 0; r < R; r++) sums[2 * r] = sums[2 * r + 1] = _mm256_setzero_ps();
    for (int g = 0; g < n_groups; g++) {
        __m256i acc[MOST_ROWS_INT4][2]; /* 16 bits hold four products of pairs */
        __m256i wide[MOST_ROWS_INT4][2];
        UNROLL
        for (int r = 0; r < R; r++) wide[r][0] = wide[r][1] = _mm256_set1_epi32(-x_sums[r * n_groups + g]);
        for (int half = 0; half < GROUP; half += GROUP / 2) {
            UNROLL
            for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
            UNROLL
            for (int u = 0; u < GROUP / 2; u += 4) {
                const int k = g * GROUP + half + u;
                _mm_prefetch((const char *)(w + k * BLOCK / 2) + AHEAD, _MM_HINT_T0);
                __m256i bytes = _mm256_loadu_si256((const __m256i *)(w + k * BLOCK / 2));
                __m256i w0 = _mm256_and_si256(bytes, low), w1 = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
                UNROLL
                for (int r = 0; r < R; r++) {
                    int32_t four;
                    memcpy(&four, x + (int64_t)r * n_in + k, 4);
                    __m256i v = _mm256_set1_epi32(four);
                    acc[r][0] = _mm256_add_epi16(acc[r][0], _mm256_maddubs_epi16(v, w0));
                    acc[r][1] = _mm256_add_epi16(acc[r][1], _mm256_maddubs_epi16(v, w1));
                }
            }
            UNROLL
            for (int r = 0; r < R; r++) {
                wide[r][0] = _mm256_add_epi32(wide[r][0], _mm256_madd_epi16(acc[r][0], ones));
                wide[r][1] = _mm256_add_epi32(wide[r][1], _mm256_madd_epi16(acc[r][1], ones));
            }
        }
        __m256 s0 = halves_8(scales + g * BLOCK), s1 = halves_8(scales + g * BLOCK + 8);
        UNROLL
        for (int r = 0; r < R; r++) {
            sums[2 * r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide[r][0]), s0, sums[2 * r]);
            sums[2 * r + 1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide[r][1]), s1, sums[2 * r + 1]);
        }
    }
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int j = 0; j < 2; j++)
            sums[2 * r + j] = _mm256_mul_ps(_mm256_sub_ps(sums[2 * r + j], _mm256_loadu_ps(zeros + 8 * j)),
                                            _mm256_set1_ps(x_scales[r]));
}

/* Rows as 8-bit numbers. */
typedef struct {
    uint8_t *numbers; /* [rows][n] of 1 to 255, 128 being 0 */
    float *scales;    /* [rows] */
    int32_t *sums;    /* [rows][n / 32] 8 times the sums of groups */
} Quantised;

static int64_t up_to_64(int64_t n) { return (n + 63) / 64 * 64; }

/* The parts of a piece of memory of valle_quantised_size(rows, n) bytes. */
static Quantised quantised_at(void *memory, int64_t n_rows, int64_t n) {
    char *at = memory;
    Quantised q = {(uint8_t *)at, NULL, NULL};
    q.scales = (float *)(at += up_to_64(n_rows * n));
    q.sums = (int32_t *)(at + up_to_64(4 * n_rows));
    return q;
}

int64_t valle_quantised_size(int64_t n_rows, int64_t n) {
    return up_to_64(n_rows * n) + up_to_64(4 * n_rows) + 4 * n_rows * (n / GROUP);
}

static void quantise_row(const float *x, int n, Quantised *q, int64_t r) {
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 largest = _mm256_set1_ps(1e-20f);
    __m256 strange = _mm256_setzero_ps();
    for (int k = 0; k < n; k += 8) {
        __m256 v = _mm256_loadu_ps(x + k);
        largest = _mm256_max_ps(largest, _mm256_and_ps(v, no_sign));
        strange = _mm256_or_ps(strange, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    float peaks[8], peak = 0;
    _mm256_storeu_ps(peaks, largest);
    for (int i = 0; i < 8; i++) peak = peaks[i] > peak ? peaks[i] : peak;
    q->scales[r] = _mm256_movemask_ps(strange) ? NAN : peak / 127.0f; /* a row with something that is no number is none */
    const __m256 factor = _mm256_set1_ps(127.0f / peak);
    uint8_t *out = q->numbers + r * n;
    for (int k = 0; k < n; k += 8) {
        __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k), factor));
        __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        shorts = _mm_add_epi16(shorts, _mm_set1_epi16(128));
        _mm_storel_epi64((__m128i *)(out + k), _mm_packus_epi16(shorts, shorts));
    }
    for (int g = 0; g < n / GROUP; g++) {
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(out + g * GROUP));
        __m256i sums = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
        int64_t four[4];
        _mm256_storeu_si256((__m256i *)four, sums);
        q->sums[r * (n / GROUP) + g] = (int32_t)(8 * (four[0] + four[1] + four[2] + four[3]));
    }
}

/* What a thread makes of a phase's input before its first chunk. */
typedef struct {
    const float *x; /* [rows] at distance row */
    int64_t row;
    Quantised quantised;
} Input;

static Input prepare(const Frame *f, const Phase *p, int n_column, float *scratch) {
    Input input = {p->in.data + n_column * p->in.column, p->in.row, {NULL, NULL, NULL}};
    const int n = p->n;
    if (p->norm_weight) {
        for (int r = 0; r < f->n_rows; r++)
            layer_norm(input.x + r * input.row, scratch + (int64_t)r * n, n, p->norm_weight, p->norm_bias, p->eps);
        input.x = scratch, input.row = n;
        scratch += up_to_64((int64_t)f->n_rows * n);
    }
    if (p->quantised) {
        input.quantised = quantised_at(p->quantised, f->n_rows, n);
    } else if (p->kind == LINEAR && p->matrix.kind != FP16) {
        input.quantised = quantised_at(scratch, f->n_rows, n);
        for (int r = 0; r < f->n_rows; r++) quantise_row(input.x + r * input.row, n, &input.quantised, r);
    }
    return input;
}

ALWAYS __m256 activated(__m256 x, int activation) {
    return activation == GELU ? gelu_8(x) : activation == RELU ? _mm256_max_ps(x, _mm256_setzero_ps()) : x;
}

/* N blocks from ``block`` on, R rows from ``r0`` on. */
ALWAYS void multiply_blocks(int N, int R, const Phase *p, const Input *in, int n_column, int block, int r0) {
    const Matrix *m = &p->matrix;
    const int64_t begin = (int64_t)block * m->n_in * BLOCK;
    __m256 sums[2 * MOST_ROWS];
    if (m->kind == FP16)
        product_fp16(N, R, (const uint16_t *)m->weights + begin, in->x + r0 * in->row, in->row, m->n_in, sums);
    else if (m->kind == INT8 && N == 1 && R <= MOST_ROWS_INT8)
        product_int8(R, (const int8_t *)m->weights + begin, (const float *)m->scales + block * BLOCK,
                     m->zeros + block * BLOCK, in->quantised.numbers + (int64_t)r0 * m->n_in, in->quantised.scales + r0,
                     m->n_in, sums);
    else if (N == 1 && R <= MOST_ROWS_INT4)
        product_int4(R, (const uint8_t *)m->weights + begin / 2,
                     (const uint16_t *)m->scales + (int64_t)block * (m->n_in / GROUP) * BLOCK, m->zeros + block * BLOCK,
                     in->quantised.numbers + (int64_t)r0 * m->n_in, in->quantised.scales + r0,
                     in->quantised.sums + (int64_t)r0 * (m->n_in / GROUP), m->n_in, sums);
    else
        __builtin_unreachable();
    const __m256 gain = _mm256_set1_ps(p->gain);
    for (int n = 0; n < N; n++) {
        const int first = (block + n) * BLOCK, is_whole = first + BLOCK <= m->n_out;
        for (int r = 0; r < R; r++) {
            float *out = p->out.data + n_column * p->out.column + (r0 + r) * p->out.row + first;
            const float *residual = p->residual.data;
            if (residual) residual += n_column * p->residual.column + (r0 + r) * p->residual.row + first;
            float y[BLOCK];
            for (int j = 0; j < 2; j++) {
                __m256 s = sums[2 * (n * R + r) + j];
                if (m->bias) s = _mm256_add_ps(s, _mm256_loadu_ps(m->bias + first + 8 * j));
                s = _mm256_mul_ps(activated(s, p->activation), gain);
                if (residual && is_whole) s = _mm256_add_ps(s, _mm256_loadu_ps(residual + 8 * j));
                _mm256_storeu_ps((is_whole ? out : y) + 8 * j, s);
            }
            for (int i = 0; !is_whole && i < m->n_out - first; i++) out[i] = y[i] + (residual ? residual[i] : 0.0f);
        }
    }
}

static void multiply(const Frame *f, const Phase *p, const Input *in, int n_column, int chunk) {
    const int n_blocks = (p->matrix.n_out + BLOCK - 1) / BLOCK;
    const int last = (int)((int64_t)n_blocks * (chunk + 1) / p->n_chunks);
    const int is_exact = p->matrix.kind == FP16;
    const int most = is_exact ? MOST_ROWS : p->matrix.kind == INT8 ? MOST_ROWS_INT8 : MOST_ROWS_INT4;
    const int n_groups = (f->n_rows + most - 1) / most, together = (f->n_rows + n_groups - 1) / n_groups;
    for (int block = (int)((int64_t)n_blocks * chunk / p->n_chunks); block < last;) {
        int taken = 1;
        for (int r = 0; r < f->n_rows; r += together) switch (f->n_rows - r < together ? f->n_rows - r : together) {
                case 1:
                    if (is_exact && f->n_rows == 1 && block + 4 <= last) taken = 4, multiply_blocks(4, 1, p, in, n_column, block, r);
                    else multiply_blocks(1, 1, p, in, n_column, block, r);
                    break;
                case 2:
                    if (is_exact && f->n_rows == 2 && block + 2 <= last) taken = 2, multiply_blocks(2, 2, p, in, n_column, block, r);
                    else multiply_blocks(1, 2, p, in, n_column, block, r);
                    break;
                case 3: multiply_blocks(1, 3, p, in, n_column, block, r); break;
                case 4: multiply_blocks(1, 4, p, in, n_column, block, r); break;
                case 5: multiply_blocks(1, 5, p, in, n_column, block, r); break;
                default: multiply_blocks(1, 6, p, in, n_column, block, r);
            }
        block += taken;
    }
}

/* Attention */

/* Scores of Q queries [Q][d] with N blocks of 32 columns of keys [N][d][32]. */
ALWAYS void score_blocks(int N, int Q, const float *queries, const uint16_t *keys, int d, float *scores, int64_t distance) {
    __m256 acc[MOST_QUERIES][4];
    UNROLL
    for (int i = 0; i < N * Q; i++)
        UNROLL
        for (int j = 0; j < 4; j++) acc[i][j] = _mm256_setzero_ps();
    for (int k = 0; k < d; k++)
        UNROLL
        for (int n = 0; n < N; n++)
            UNROLL
            for (int j = 0; j < 4; j++) {
                __m256 key = halves_8(keys + ((int64_t)n * d + k) * COLUMNS + 8 * j);
                UNROLL
                for (int i = 0; i < Q; i++)
                    acc[n * Q + i][j] = _mm256_fmadd_ps(_mm256_broadcast_ss(queries + i * d + k), key, acc[n * Q + i][j]);
            }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < Q; i++)
            for (int j = 0; j < 4; j++) _mm256_storeu_ps(scores + i * distance + n * COLUMNS + 8 * j, acc[n * Q + i][j]);
}

/* The same for as many blocks as there are. */
static void score(int Q, const float *queries, const uint16_t *keys, int n_blocks, int d, float *scores, int64_t distance) {
    int n = 0;
    for (; Q == 1 && n + 3 <= n_blocks; n += 3)
        score_blocks(3, 1, queries, keys + (int64_t)n * d * COLUMNS, d, scores + n * COLUMNS, distance);
    for (; n < n_blocks; n++) {
        const uint16_t *block = keys + (int64_t)n * d * COLUMNS;
        if (Q == 1) score_blocks(1, 1, queries, block, d, scores + n * COLUMNS, distance);
        else if (Q == 2) score_blocks(1, 2, queries, block, d, scores + n * COLUMNS, distance);
        else score_blocks(1, 3, queries, block, d, scores + n * COLUMNS, distance);
    }
}

/* found [Q][8 * N numbers of d] += weights [Q][n] by values [n][d] */
ALWAYS void gather_part(int N, int Q, const float *weights, int64_t distance, const uint16_t *values, int n, int d, float *found) {
    __m256 acc[12];
    UNROLL
    for (int i = 0; i < Q; i++)
        UNROLL
        for (int j = 0; j < N; j++) acc[i * N + j] = _mm256_loadu_ps(found + i * d + 8 * j);
    for (int t = 0; t < n; t++)
        UNROLL
        for (int j = 0; j < N; j++) {
            __m256 value = halves_8(values + (int64_t)t * d + 8 * j);
            UNROLL
            for (int i = 0; i < Q; i++)
                acc[i * N + j] = _mm256_fmadd_ps(_mm256_broadcast_ss(weights + i * distance + t), value, acc[i * N + j]);
        }
    UNROLL
    for (int i = 0; i < Q; i++)
        UNROLL
        for (int j = 0; j < N; j++) _mm256_storeu_ps(found + i * d + 8 * j, acc[i * N + j]);
}

/* found [Q][d] += weights [Q][n] by values [n][d]; d a multiple of 32 */
static void gather(int Q, const float *weights, int64_t distance, const uint16_t *values, int n, int d, float *found) {
    int first = 0;
    for (; Q == 1 && first + 64 <= d; first += 64) gather_part(8, 1, weights, distance, values + first, n, d, found + first);
    for (; first < d; first += 32) {
        if (Q == 1) gather_part(4, 1, weights, distance, values + first, n, d, found + first);
        else if (Q == 2) gather_part(4, 2, weights, distance, values + first, n, d, found + first);
        else gather_part(4, 3, weights, distance, values + first, n, d, found + first);
    }
}

static void hide(float *scores, int from, int to) {
    for (int i = from; i < to; i++) scores[i] = -1e30f;
}

/* scores [n] -> exp(scores - their maximum); returns their sum. n a multiple of 8 */
ALWAYS float exponentials(float *scores, int n) {
    __m256 largest = _mm256_loadu_ps(scores);
    for (int i = 8; i < n; i += 8) largest = _mm256_max_ps(largest, _mm256_loadu_ps(scores + i));
    float peaks[8], peak;
    _mm256_storeu_ps(peaks, largest);
    peak = peaks[0];
    for (int i = 1; i < 8; i++) peak = peaks[i] > peak ? peaks[i] : peak;
    __m256 sum = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) {
        __m256 e = exp_8(_mm256_sub_ps(_mm256_loadu_ps(scores + i), _mm256_set1_ps(peak)));
        _mm256_storeu_ps(scores + i, e);
        sum = _mm256_add_ps(sum, e);
    }
    return sum_8(sum);
}

/* Chunk: one head of keys of one of the rows that were read, for all that go on from it. */
static void attend(const Frame *f, const Phase *p, int n_column, int chunk, float *scratch) {
    const int d = f->d, H = f->n_heads, G = f->n_grouped, C = f->n_copies;
    const int b = chunk / H, h = chunk % H;
    const int n_shared = f->n_shared[b], n_own = n_column + 1;
    const int shared_blocks = (n_shared + COLUMNS - 1) / COLUMNS, own_blocks = (n_own + COLUMNS - 1) / COLUMNS;
    const int64_t shared_room = (f->n_shared_most + COLUMNS - 1) / COLUMNS * COLUMNS;
    const int64_t own_room = (f->own_most + COLUMNS - 1) / COLUMNS * COLUMNS;
    const int64_t distance = (int64_t)(shared_blocks + own_blocks) * COLUMNS;
    const uint16_t *keys = p->keys + ((int64_t)b * H + h) * shared_room * d;
    const uint16_t *values = p->values + ((int64_t)b * H + h) * f->n_shared_most * d;
    for (int c = 0; c < C; c++) {
        const int64_t row = (int64_t)b * C + c, place = row * H + h;
        const float *key = p->in.data + row * p->in.row + (int64_t)H * G * d + (int64_t)h * d, *value = key + (int64_t)H * d;
        uint16_t *to_key = p->own_keys + place * own_room * d + (int64_t)(n_column / COLUMNS) * d * COLUMNS;
        uint16_t *to_value = p->own_values + (place * f->own_most + n_column) * d;
        for (int k = 0; k < d; k += 8) {
            uint16_t halves[8];
            _mm_storeu_si128((__m128i *)halves, _mm256_cvtps_ph(_mm256_loadu_ps(key + k), _MM_FROUND_TO_NEAREST_INT));
            for (int i = 0; i < 8; i++) to_key[(k + i) * COLUMNS + n_column % COLUMNS] = halves[i];
            _mm_storeu_si128((__m128i *)(to_value + k), _mm256_cvtps_ph(_mm256_loadu_ps(value + k), _MM_FROUND_TO_NEAREST_INT));
        }
    }
    float *queries = scratch, *found = queries + MOST_QUERIES * d, *scores = found + MOST_QUERIES * d;
    const __m256 scale = _mm256_set1_ps(p->gain);
    for (int q0 = 0; q0 < C * G; q0 += MOST_QUERIES) {
        const int Q = C * G - q0 < MOST_QUERIES ? C * G - q0 : MOST_QUERIES;
        int64_t rows[MOST_QUERIES];
        for (int i = 0; i < Q; i++) {
            const int g = (q0 + i) % G;
            rows[i] = (int64_t)b * C + (q0 + i) / G;
            const float *query = p->in.data + rows[i] * p->in.row + (int64_t)(h * G + g) * d;
            for (int k = 0; k < d; k += 8)
                _mm256_storeu_ps(queries + i * d + k, _mm256_mul_ps(_mm256_loadu_ps(query + k), scale));
        }
        score(Q, queries, keys, shared_blocks, d, scores, distance);
        float sums[MOST_QUERIES];
        for (int i = 0; i < Q; i++) {
            const uint16_t *own = p->own_keys + (rows[i] * H + h) * own_room * d;
            float *of_query = scores + i * distance, *of_own = of_query + (int64_t)shared_blocks * COLUMNS;
            score(1, queries + i * d, own, own_blocks, d, of_own, 0);
            hide(of_query, n_shared, shared_blocks * COLUMNS);
            hide(of_own, n_own, own_blocks * COLUMNS);
            sums[i] = exponentials(of_query, (int)distance);
        }
        memset(found, 0, sizeof(float) * (size_t)(Q * d));
        gather(Q, scores, distance, values, n_shared, d, found);
        for (int i = 0; i < Q; i++) {
            const uint16_t *own = p->own_values + (rows[i] * H + h) * f->own_most * d;
            gather(1, scores + i * distance + (int64_t)shared_blocks * COLUMNS, 0, own, n_own, d, found + i * d);
            float *out = p->out.data + rows[i] * p->out.row + (int64_t)(h * G + (q0 + i) % G) * d;
            const __m256 factor = _mm256_set1_ps(1.0f / sums[i]);
            for (int k = 0; k < d; k += 8)
                _mm256_storeu_ps(out + k, _mm256_mul_ps(_mm256_loadu_ps(found + i * d + k), factor));
        }
    }
}

/* Chunk: keys and values of a head of a sequence, in half precision and as attention reads them. */
static void keep(const Frame *f, const Phase *p, int chunk) {
    const int d = f->d, H = f->n_heads, G = f->n_grouped, n = f->n_copies, b = chunk / H, h = chunk % H;
    const int64_t room = (int64_t)(n + COLUMNS - 1) / COLUMNS * COLUMNS;
    uint16_t *keys = p->own_keys + ((int64_t)b * H + h) * room * d, *values = p->own_values + ((int64_t)b * H + h) * n * d;
    for (int t = 0; t < n; t++) {
        const float *key = p->in.data + ((int64_t)b * n + t) * p->in.row + (int64_t)(H * G + h) * d;
        const float *value = key + (int64_t)H * d;
        uint16_t *to = keys + (int64_t)(t / COLUMNS) * d * COLUMNS + t % COLUMNS;
        for (int k = 0; k < d; k += 8) {
            uint16_t halves[8];
            _mm_storeu_si128((__m128i *)halves, _mm256_cvtps_ph(_mm256_loadu_ps(key + k), _MM_FROUND_TO_NEAREST_INT));
            for (int i = 0; i < 8; i++) to[(k + i) * COLUMNS] = halves[i];
            _mm_storeu_si128((__m128i *)(values + (int64_t)t * d + k),
                             _mm256_cvtps_ph(_mm256_loadu_ps(value + k), _MM_FROUND_TO_NEAREST_INT));
        }
    }
}

/* Chunk: some queries of a head of a sequence, over that sequence. */
static void attend_all(const Frame *f, const Phase *p, int chunk, float *scratch) {
    const int d = f->d, H = f->n_heads, G = f->n_grouped, n = f->n_copies, n_parts = (n + PART - 1) / PART;
    const int part = chunk % n_parts, h = chunk / n_parts % H, b = chunk / n_parts / H;
    const int last = (part + 1) * PART < n ? (part + 1) * PART : n;
    const int64_t room = (int64_t)(n + COLUMNS - 1) / COLUMNS * COLUMNS;
    const uint16_t *keys = p->keys + ((int64_t)b * H + h) * room * d, *values = p->values + ((int64_t)b * H + h) * n * d;
    const float *hidden = p->hidden ? p->hidden + b * room : NULL;
    float *queries = scratch, *found = queries + MOST_QUERIES * d, *scores = found + MOST_QUERIES * d;
    const __m256 scale = _mm256_set1_ps(p->gain);
    for (int t0 = part * PART; t0 < last; t0 += MOST_QUERIES)
        for (int g = 0; g < G; g++) {
            const int Q = last - t0 < MOST_QUERIES ? last - t0 : MOST_QUERIES;
            const int seen = p->is_causal ? t0 + Q : n, n_blocks = (seen + COLUMNS - 1) / COLUMNS;
            const int distance = n_blocks * COLUMNS;
            float sums[MOST_QUERIES];
            for (int i = 0; i < Q; i++) {
                const float *query = p->in.data + ((int64_t)b * n + t0 + i) * p->in.row + (int64_t)(h * G + g) * d;
                for (int k = 0; k < d; k += 8)
                    _mm256_storeu_ps(queries + i * d + k, _mm256_mul_ps(_mm256_loadu_ps(query + k), scale));
            }
            score(Q, queries, keys, n_blocks, d, scores, distance);
            for (int i = 0; i < Q; i++) {
                float *own = scores + (int64_t)i * distance;
                for (int k = 0; hidden && k < distance; k += 8)
                    _mm256_storeu_ps(own + k, _mm256_add_ps(_mm256_loadu_ps(own + k), _mm256_loadu_ps(hidden + k)));
                hide(own, p->is_causal ? t0 + i + 1 : n, distance);
                sums[i] = exponentials(own, distance);
            }
            memset(found, 0, sizeof(float) * (size_t)(Q * d));
            gather(Q, scores, distance, values, seen, d, found);
            for (int i = 0; i < Q; i++) {
                float *out = p->out.data + ((int64_t)b * n + t0 + i) * p->out.row + (int64_t)(h * G + g) * d;
                const __m256 factor = _mm256_set1_ps(1.0f / sums[i]);
                for (int k = 0; k < d; k += 8)
                    _mm256_storeu_ps(out + k, _mm256_mul_ps(_mm256_loadu_ps(found + i * d + k), factor));
            }
        }
}

/* All rows: out = residual + gain * input */
static void add(const Frame *f, const Phase *p, const Input *in, int n_column) {
    for (int r = 0; r < f->n_rows; r++) {
        const float *x = in->x + r * in->row, *residual = NULL;
        if (p->residual.data) residual = p->residual.data + n_column * p->residual.column + r * p->residual.row;
        float *out = p->out.data + n_column * p->out.column + r * p->out.row;
        for (int k = 0; k < p->n; k++) out[k] = (residual ? residual[k] : 0.0f) + p->gain * x[k];
    }
}

/* Chunk: some of the rows. */
static void quantise(const Frame *f, const Phase *p, int n_column, int chunk, float *scratch) {
    Quantised q = quantised_at(p->quantised, f->n_rows, p->n);
    const int last = (int)((int64_t)f->n_rows * (chunk + 1) / p->n_chunks);
    for (int r = (int)((int64_t)f->n_rows * chunk / p->n_chunks); r < last; r++) {
        const float *x = p->in.data + n_column * p->in.column + r * p->in.row;
        if (p->norm_weight) layer_norm(x, scratch, p->n, p->norm_weight, p->norm_bias, p->eps), x = scratch;
        quantise_row(x, p->n, &q, r);
    }
}

static void work(const Frame *f, const Phase *p, const Input *in, int n_column, int chunk, float *scratch) {
    if (p->kind == LINEAR) multiply(f, p, in, n_column, chunk);
    else if (p->kind == ATTEND) attend(f, p, n_column, chunk, scratch);
    else if (p->kind == ROWS) add(f, p, in, n_column);
    else if (p->kind == QUANTISE) quantise(f, p, n_column, chunk, scratch);
    else if (p->kind == KEEP) keep(f, p, chunk);
    else attend_all(f, p, chunk, scratch);
}

/* Sampling */

/* The places of n numbers, all at least 0, that are kept: from the largest down, until what is kept reaches ``target`` in
 * number (by_count) or sum. What is not kept becomes 0. rest [n] is scratch. */
static void keep_largest(float *x, int n, double target, int by_count, float *rest) {
    double kept = 0; /* of all above ``least`` */
    float least = 0;
    int ties = 0; /* of those equal to it, how many are kept */
    memcpy(rest, x, sizeof(float) * (size_t)n);
    for (int n_rest = n; n_rest > 0;) {
        float a = rest[0], b = rest[n_rest / 2], c = rest[n_rest - 1];
        float pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        double above = 0;
        int n_above = 0, n_equal = 0;
        for (int i = 0; i < n_rest; i++) {
            if (rest[i] > pivot) above += by_count ? 1 : rest[i], n_above++;
            n_equal += rest[i] == pivot;
        }
        const int goes_up = kept + above >= target;
        if (!goes_up) {
            kept += above;
            least = pivot;
            for (ties = 0; ties < n_equal && kept < target; ties++) kept += by_count ? 1 : pivot;
            if (kept >= target) break;
        }
        int to = 0;
        for (int i = 0; i < n_rest; i++)
            if (goes_up ? rest[i] > pivot : rest[i] < pivot) rest[to++] = rest[i];
        n_rest = to;
    }
    for (int i = 0; i < n; i++)
        if (x[i] < least || (x[i] == least && ties-- <= 0)) x[i] = 0;
}

/* Draw a token of each row by temperature, top-k and top-p in this order: the largest of probability / noise, the noise
 * [rows][n] being exponential. logits [rows][n], whole rows of 8 and more readable; scratch [2 * n + 16]. */
void valle_draw(const float *logits, int64_t row, int n_rows, int n, float temperature, int top_k, double top_p,
                const float *noise, int64_t *tokens, float *scratch) {
    float *p = scratch, *rest = scratch + n + 8;
    for (int r = 0; r < n_rows; r++) {
        double sum = 0;
        float largest = logits[r * row];
        tokens[r] = 0; /* should nothing be a number */
        for (int i = 1; i < n; i++) largest = logits[r * row + i] > largest ? logits[r * row + i] : largest;
        for (int i = 0; i < n; i++) p[i] = (logits[r * row + i] - largest) / temperature;
        for (int i = 0; i < n; i += 8) _mm256_storeu_ps(p + i, exp_8(_mm256_loadu_ps(p + i)));
        if (top_k > 0 && top_k < n) keep_largest(p, n, top_k, 1, rest);
        for (int i = 0; i < n; i++) sum += p[i];
        if (top_p < 1.0) keep_largest(p, n, top_p * sum, 0, rest);
        float most = -1;
        for (int i = 0; i < n; i++)
            if (p[i] > 0 && p[i] > most * noise[(int64_t)r * n + i]) most = p[i] / noise[(int64_t)r * n + i], tokens[r] = i;
    }
}

/* log softmax of logits [rows][n] at one token each */
void valle_log_probs(const float *logits, int64_t row, int n_rows, int n, const int64_t *tokens, float *out) {
    for (int r = 0; r < n_rows; r++) {
        const float *x = logits + r * row;
        float largest = x[0];
        for (int i = 1; i < n; i++) largest = x[i] > largest ? x[i] : largest;
        __m256 sum = _mm256_setzero_ps();
        int i = 0;
        for (; i + 8 <= n; i += 8)
            sum = _mm256_add_ps(sum, exp_8(_mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(largest))));
        float total = sum_8(sum);
        for (; i < n; i++) total += expf(x[i] - largest);
        out[r] = x[tokens[r]] - largest - logf(total);
    }
}

/* Threads. A job is a frame; its generation stands in every counter, so that a thread that comes late from an earlier job
 * can take nothing. */

enum { MOST_PHASES = 1024, MOST_HELPERS = 63 };

typedef struct {
    _Alignas(64) _Atomic uint64_t next; /* generation << 32 | next chunk */
    _Atomic uint32_t done;
    _Atomic uint32_t n_chunks;
} Counter;

static Counter counters[MOST_PHASES];
static _Atomic uint32_t generation, wanted; /* wanted: how many helpers may take part in this job */
static _Atomic(const Frame *) job;
static _Atomic int32_t job_column;
static _Atomic int32_t job_phases;
static pthread_mutex_t one_job = PTHREAD_MUTEX_INITIALIZER, sleeping = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t awake = PTHREAD_COND_INITIALIZER;
static int n_helpers;

static void take_part(uint32_t mine, const Frame *f, int n_column, int n_phases, float **scratch, int64_t *size) {
    for (int i = 0; i < n_phases; i++) {
        Counter *counter = &counters[i];
        Input input;
        int is_prepared = 0;
        const uint32_t n_chunks = atomic_load_explicit(&counter->n_chunks, memory_order_acquire);
        for (;;) {
            uint64_t next = atomic_load_explicit(&counter->next, memory_order_acquire);
            if ((uint32_t)(next >> 32) != mine) return; /* the job is over */
            if ((uint32_t)next >= n_chunks) break;
            if (!atomic_compare_exchange_weak_explicit(&counter->next, &next, next + 1, memory_order_acq_rel, memory_order_relaxed))
                continue;
            /* From here on the frame cannot go, until this chunk is told to be done. */
            if (*size < f->scratch_floats) {
                free(*scratch);
                *size = f->scratch_floats;
                *scratch = aligned_alloc(64, (size_t)(*size * 4 + 63) / 64 * 64);
                if (!*scratch) abort();
            }
            const Phase *p = &f->phases[i];
            if (!is_prepared && (p->kind == LINEAR || p->kind == ROWS)) input = prepare(f, p, n_column, *scratch);
            is_prepared = 1;
            work(f, p, &input, n_column, (int)(uint32_t)next, *scratch);
            atomic_fetch_add_explicit(&counter->done, 1, memory_order_release);
        }
        for (int turns = 0; atomic_load_explicit(&counter->done, memory_order_acquire) < n_chunks; turns++) {
            if (atomic_load_explicit(&generation, memory_order_relaxed) != mine) return;
            if (turns < 4000) _mm_pause();
            else sched_yield();
        }
    }
}

static void *help(void *number) {
    const uint32_t me = (uint32_t)(uintptr_t)number;
    float *scratch = NULL;
    int64_t size = 0;
    uint32_t seen = 0;
    for (;;) {
        pthread_mutex_lock(&sleeping);
        while (atomic_load(&generation) == seen || me >= atomic_load(&wanted)) {
            seen = atomic_load(&generation);
            pthread_cond_wait(&awake, &sleeping);
        }
        seen = atomic_load(&generation);
        const Frame *f = atomic_load(&job);
        const int n_column = atomic_load(&job_column), n_phases = atomic_load(&job_phases);
        pthread_mutex_unlock(&sleeping);
        take_part(seen, f, n_column, n_phases, &scratch, &size);
    }
    return NULL;
}

static void forget_helpers(void) { /* after a fork: threads do not come along, and the locks may have been held */
    n_helpers = 0;
    atomic_store(&wanted, 0); /* nor does the job that another thread may have been at */
    atomic_store(&job, NULL);
    atomic_fetch_add(&generation, 1);
    pthread_mutex_init(&one_job, NULL);
    pthread_mutex_init(&sleeping, NULL);
    pthread_cond_init(&awake, NULL);
}

static void alone(const Frame *f, int n_column) {
    for (int i = 0; i < f->n_phases; i++) {
        const Phase *p = &f->phases[i];
        Input input = {0};
        if (p->kind == LINEAR || p->kind == ROWS) input = prepare(f, p, n_column, f->scratch);
        for (int chunk = 0; chunk < p->n_chunks; chunk++) work(f, p, &input, n_column, chunk, f->scratch);
    }
}

/* Run a frame: column ``n_column`` of each row, from 0. Returns 0. */
int valle_run(const Frame *f, int n_column, int n_threads) {
    if (n_threads <= 1 || f->n_phases > MOST_PHASES || pthread_mutex_trylock(&one_job)) {
        alone(f, n_column);
        return 0;
    }
    static int is_told;
    if (!is_told) is_told = 1, pthread_atfork(NULL, NULL, forget_helpers);
    while (n_helpers < n_threads - 1 && n_helpers < MOST_HELPERS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, (void *)(uintptr_t)n_helpers)) break;
        pthread_detach(thread);
        n_helpers++;
    }
    pthread_mutex_lock(&sleeping);
    const uint32_t mine = atomic_load(&generation) + 1;
    atomic_store(&generation, mine);
    for (int i = 0; i < f->n_phases; i++) {
        /* Nothing can be taken while the rest is written, by those of an earlier job least of all. */
        atomic_store(&counters[i].next, (uint64_t)mine << 32 | UINT32_MAX);
        atomic_store(&counters[i].done, 0);
        atomic_store(&counters[i].n_chunks, (uint32_t)f->phases[i].n_chunks);
        atomic_store(&counters[i].next, (uint64_t)mine << 32);
    }
    atomic_store(&job, f);
    atomic_store(&job_column, n_column);
    atomic_store(&job_phases, f->n_phases);
    atomic_store(&wanted, (uint32_t)(n_threads - 1));
    pthread_cond_broadcast(&awake);
    pthread_mutex_unlock(&sleeping);
    float *scratch = f->scratch;
    int64_t size = f->scratch_floats;
    take_part(mine, f, n_column, f->n_phases, &scratch, &size);
    pthread_mutex_unlock(&one_job);
    return 0;
}

/* Sizes, by which frames.py makes sure that it speaks of the same structures. */
int64_t valle_size_of_frame(void) { return (int64_t)sizeof(Frame); }
int64_t valle_size_of_phase(void) { return (int64_t)sizeof(Phase); }

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
