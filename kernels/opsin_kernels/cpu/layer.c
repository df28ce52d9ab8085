/* A decoder layer of a step in which every row is the newest of its sequence: one call where torch needs some thirty. It is
 * what blocks.decoder computes, by the same functions, to the bit.
 */
#include "decode.h"
#include "linear.h"
#include "rows.h"

/* A layer. Weights: NULL where there is none (q_norm and k_norm, biases). */
typedef struct {
    const weight_t *qkv, *out, *gate_up, *down;
    const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias, *attention_norm, *mlp_norm, *q_norm, *k_norm, *eps;
    int64_t heads, kv_heads, head, width, mlp;
} layer_t;

/* What all layers of a step share. scratch: floats of a row, of all kinds that a layer makes, for all rows. */
typedef struct {
    float *scratch;
    const float *cos, *sin;
    const int64_t *slots, *table, *lengths;
    int64_t rows, pages, block, eight, threads;
} step_t;

static int product(float *out, const float *x, const weight_t *w, const float *bias, const step_t *step) {
    if (!linear(out, x, step->rows, w, step->threads)) return 0;
    if (bias)
        for (int64_t row = 0; row < step->rows; row++)
            for (int64_t i = 0; i < w->n; i++) out[row * w->n + i] += bias[i];
    return 1;
}

static void head_norms(float *qkv, const layer_t *layer, const step_t *step) {
    const int64_t all = (layer->heads + 2 * layer->kv_heads) * layer->head;
    for (int64_t row = 0; row < step->rows; row++) {
        float *q = qkv + row * all, *k = q + layer->heads * layer->head;
        rms_norm(q, q, layer->q_norm, layer->heads, layer->head, layer->eps);
        rms_norm(k, k, layer->k_norm, layer->kv_heads, layer->head, layer->eps);
    }
}

/* x [rows, width], changed in place. 0: there was no memory. */
int decode_layer(float *x, char *pool, const layer_t *layer, const step_t *step) {
    const int64_t rows = step->rows, width = layer->width, head = layer->head, kv_heads = layer->kv_heads;
    const int64_t queries = layer->heads * head, all = queries + 2 * kv_heads * head;
    float *normed = step->scratch, *delta = normed + rows * width, *qkv = delta + rows * width;
    float *attended = qkv + rows * all, *gate_up = attended + rows * queries, *gated = gate_up + rows * 2 * layer->mlp;

    rms_norm(normed, x, layer->attention_norm, rows, width, layer->eps);
    if (!product(qkv, normed, layer->qkv, layer->qkv_bias, step)) return 0;
    if (layer->q_norm) head_norms(qkv, layer, step);
    rotate_and_store(qkv, step->cos, step->sin, pool, step->slots, rows, layer->heads, kv_heads, head, step->eight);
    attend(attended, qkv, pool, step->table, step->lengths, rows, step->pages, step->block, all, layer->heads, kv_heads,
           head, step->eight, step->threads);
    if (!product(delta, attended, layer->out, layer->out_bias, step)) return 0;
    add_rms_norm(normed, x, x, delta, layer->mlp_norm, rows, width, layer->eps);
    if (!product(gate_up, normed, layer->gate_up, layer->gate_up_bias, step)) return 0;
    silu_gated(gated, gate_up, rows, layer->mlp);
    if (!product(delta, gated, layer->down, layer->down_bias, step)) return 0;
    for (int64_t i = 0; i < rows * width; i++) x[i] += delta[i];
    return 1;
}
