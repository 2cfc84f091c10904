/* The prediction layer: what an export writes of it, that guesses never change a text, greedy or
 * seeded, and that they are those of the layer computed in one go over the whole text. */
#include "core/file.h"
#include "core/mtp.h"
#include "core/sampler.h"
#include "core/safetensors.h"
#include "kernels/backend.h"
#include "kernels/pool.h"
#include "sessions/draft.h"
#include "sessions/export.h"
#include "tests/support.h"

enum { PROMPT = 9, FOLLOW = 40, TEXT = PROMPT + FOLLOW };

/* A tiny conversion's export with the layer, in F32. */
static void make_export(const char *name, enum stock_engine to, bool fitted, const char *path)
{
    struct err e = {0};
    struct workspace_options o = {.device = "cpu", .threads = 1, .exact = true};
    struct calib_options calib = {.tokens = 768, .seed = 5};
    struct workspace *w = NULL;
    struct model_info info;
    struct rankplan plan;
    struct export_report r = {0};
    const char *const self[] = {"self"};
    CHECK_OK(workspace_new(&w, &o, &e), e);
    CHECK_OK(workspace_open(w, test_path(name), NULL, &e), e);
    CHECK_OK(workspace_calibrate(w, &calib, NULL, NULL, NULL, &e), e);
    workspace_info(w, &info);
    CHECK_OK(rankplan_init(&plan, &info.plan_model, &e), e);
    plan.layout = LAYOUT_STOCK;
    CHECK_OK(rankplan_uniform(&plan, info.n_kv_head * info.head_dim, info.head_dim, &e), e);
    CHECK_OK(workspace_convert(w, &plan, NULL, NULL, NULL, &e), e);
    struct export_options x = {.to = to,
                               .dtype = DTYPE_F32,
                               .path = path,
                               .mtp = true,
                               .files = self,
                               .n_files = fitted,
                               .tokens = 2048};
    CHECK_OK(workspace_export(w, &x, NULL, &r, &e), e);
    printf("  %-16s %-5s %s: read back %.1e, %d of %d guesses right\n", path_base(name),
           stock_key(to), fitted ? "fitted" : "as it is", r.check.nmse, r.accepted, r.drafted);
    CHECK(r.check.done && r.check.nmse < 1e-7 && r.drafted > 0, "%s", r.check.text);
    /* What it cannot be given to. */
    static const enum stock_engine refuse[] = {STOCK_SGLANG, STOCK_GGUF};
    for (size_t i = 0; i < 2; i++) {
        x.to = refuse[i];
        struct export_report refused = {0};
        CHECK(workspace_export(w, &x, NULL, &refused, &e) == ERR_UNSUPPORTED &&
                  (strstr(e.text, "--mtp") || strstr(e.text, "--fold-biases")),
              "%s", e.text);
        export_report_done(&refused);
    }
    export_report_done(&r);
    rankplan_done(&plan);
    workspace_free(w);
}

/* DeepSeek's names and shapes, and the keys of config.json that go with them. */
static void check_layout(const char *path)
{
    static const struct {
        const char *name;
        int rows, cols; /* of hidden sizes; 0: a vector; -1: the vocabulary */
    } list[] = {{"embed_tokens.weight", -1, 1},
                {"enorm.weight", 1, 0},
                {"hnorm.weight", 1, 0},
                {"eh_proj.weight", 1, 2},
                {"shared_head.norm.weight", 1, 0},
                {"shared_head.head.weight", -1, 1},
                {"input_layernorm.weight", 1, 0},
                {"post_attention_layernorm.weight", 1, 0},
                {"self_attn.kv_a_proj_with_mqa.weight", 0, 1},
                {"self_attn.kv_b_proj.weight", 0, 0},
                {"self_attn.o_proj.weight", 1, 0},
                {"mlp.gate_proj.weight", 0, 1},
                {"mlp.down_proj.weight", 1, 0}};
    struct err e = {0};
    struct safetensors *st = NULL;
    cJSON *c = NULL;
    char *config = path_join(path, "config.json"), name[96];
    CHECK_OK(json_read_file(&c, config, 1 << 20, &e), e);
    free(config);
    CHECK_OK(safetensors_open(&st, path, &e), e);
    int L = json_get(c, "num_hidden_layers")->valueint, D = json_get(c, "hidden_size")->valueint;
    CHECK(json_get(c, "num_nextn_predict_layers")->valueint == 1, "the layer is announced");
    CHECK(json_get(c, "first_k_dense_replace")->valueint == L + 1, "its feed-forward is dense too");
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct tensor t;
        snprintf(name, sizeof name, "model.layers.%d.%s", L, list[i].name);
        CHECK_OK(safetensors_get(st, name, &t, &e), e);
        int V = json_get(c, "vocab_size")->valueint;
        size_t rows = (size_t)(list[i].rows < 0 ? V : list[i].rows * D);
        CHECK(!rows || t.dim[0] == rows, "%s has %zu rows", name, t.dim[0]);
        CHECK(!list[i].cols || (t.rank == 2 && t.dim[1] == (size_t)(list[i].cols * D)), "%s", name);
    }
    safetensors_close(st);
    cJSON_Delete(c);
}

struct subject {
    struct model *m;
    struct backend *b;
    struct engine *g;
};

/* Whether FOLLOW tokens behind the prompt are chosen alike with guesses and without. */
static struct draft_count compare(const struct subject *s, double temperature, uint64_t seed,
                                  int n_ctx, int32_t *text)
{
    struct err e = {0};
    struct draft_count count = {0};
    int V = s->m->hp.vocab, n = n_ctx < TEXT ? n_ctx : TEXT;
    int32_t made[2][TEXT] = {{0}};
    float *logits = calloc((size_t)V, sizeof *logits);
    struct sampler_options o = {.temperature = temperature, .top_p = 1, .seed = seed};
    for (int guess = 0; guess < 2; guess++) {
        struct infer *t = NULL;
        struct draft *d = NULL;
        struct sampler *choose = NULL;
        for (int i = 0; i < PROMPT; i++)
            made[guess][i] = (int)((uint64_t)(i * 37 + 11) % (uint64_t)V);
        CHECK_OK(infer_new(&t, s->g, n_ctx, DTYPE_F32, &e), e);
        if (guess)
            CHECK_OK(draft_new(&d, s->g, t, DTYPE_F32, &e), e);
        CHECK(!guess || d, "no prediction layer");
        CHECK_OK(sampler_new(&choose, &o, V, &e), e);
        CHECK_OK(infer_prefill(t, made[guess], PROMPT, INFER_LAST, logits, NULL, &e), e);
        for (int i = PROMPT; i < n; i++) {
            made[guess][i] = sampler_next(choose, logits, V);
            CHECK_OK(draft_step(d, t, made[guess][i], V, logits, &e), e);
            CHECK(draft_pos(d, t) == i + 1, "position %d of %d", draft_pos(d, t), i + 1);
        }
        count = draft_count(d);
        draft_settle(d);
        CHECK(infer_pos(t) == n, "settled at %d", infer_pos(t));
        draft_free(d);
        infer_free(t);
        sampler_free(choose);
    }
    CHECK(!memcmp(made[0], made[1], sizeof made[0]), "temperature %g, seed %d: another text",
          temperature, (int)seed);
    if (text)
        memcpy(text, made[0], sizeof made[0]);
    free(logits);
    return count;
}

/* The states behind a text's tokens, on the host. */
struct states_seen {
    struct backend *b;
    float *x;
    int D;
};
static void see(void *user, const float *x, const int32_t *ids, int first, int n)
{
    struct states_seen *s = user;
    (void)ids;
    s->b->ops->get(s->b, s->x + (size_t)first * (size_t)s->D, x,
                   (size_t)(n * s->D) * sizeof(float));
}

static void norm(const float *x, const float *gamma, int D, double eps, double *out)
{
    double sum = 0;
    for (int i = 0; i < D; i++)
        sum += (double)x[i] * x[i];
    for (int i = 0; i < D; i++)
        out[i] = x[i] / sqrt(sum / D + eps) * gamma[i];
}

/* Guesses for text[3] … text[n], the layer's rows written down as they are defined. */
static void define_guesses(const struct subject *s, const int32_t *text, int n, int32_t *guess)
{
    struct err e = {0};
    const struct model_mtp *m = s->m->mtp;
    int D = s->m->hp.hidden, V = s->m->hp.vocab;
    struct states_seen seen = {s->b, calloc((size_t)(n * D), sizeof(float)), D};
    struct infer *t = NULL, *own = NULL;
    struct engine *g = NULL;
    float *enorm, *hnorm, *join, *embed, *row = calloc((size_t)D, sizeof *row);
    float *logits = calloc((size_t)V, sizeof *logits);
    double *both = calloc(2 * (size_t)D, sizeof *both);
    CHECK_OK(infer_new(&t, s->g, n, DTYPE_F32, &e), e);
    infer_watch(t, (struct infer_watch){see, &seen});
    CHECK_OK(infer_prefill(t, text, n, INFER_NONE, NULL, NULL, &e), e);
    CHECK_OK(engine_new(&g, &m->model, s->b, NULL, &e), e);
    CHECK_OK(infer_new(&own, g, n, DTYPE_F32, &e), e);
    CHECK_OK(tensor_to_f32(&m->enorm, &enorm, &e), e);
    CHECK_OK(tensor_to_f32(&m->hnorm, &hnorm, &e), e);
    CHECK_OK(tensor_to_f32(&m->eh_proj, &join, &e), e);
    CHECK_OK(tensor_to_f32(&s->m->embed, &embed, &e), e);
    for (int p = 0; p + 1 < n; p++) {
        norm(embed + (size_t)(text[p + 1] * D), enorm, D, s->m->hp.rms_eps, both);
        for (int i = 0; i < D && !p; i++)
            both[i] = 0;
        norm(seen.x + (size_t)(p * D), hnorm, D, s->m->hp.rms_eps, both + D);
        for (int i = 0; i < D; i++) {
            double sum = 0;
            for (int k = 0; k < 2 * D; k++)
                sum += (double)join[(size_t)(i * 2 * D + k)] * both[k];
            row[i] = (float)sum;
        }
        CHECK_OK(infer_rows(own, row, 1, logits, &e), e);
        guess[p + 2] = 0;
        for (int i = 1; i < V; i++)
            if (logits[i] > logits[guess[p + 2]])
                guess[p + 2] = i;
    }
    float *all[] = {enorm, hnorm, join, embed, row, logits, seen.x};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(both);
    infer_free(own);
    infer_free(t);
    engine_free(g);
}

/* Tokens read together are, bit by bit, those read one after another: what makes guessing exact. */
static void check_bits(const struct subject *s, const int32_t *text)
{
    struct err e = {0};
    struct infer *one = NULL, *few = NULL;
    size_t V = (size_t)s->m->hp.vocab;
    float *a = calloc(4 * V, sizeof *a), *b = a + 2 * V;
    CHECK_OK(infer_new(&one, s->g, TEXT, DTYPE_F16, &e), e);
    CHECK_OK(infer_new(&few, s->g, TEXT, DTYPE_F16, &e), e);
    for (int i = 0; i + 2 <= TEXT; i += 2) {
        CHECK_OK(infer_few(few, text + i, 2, a, &e), e);
        CHECK_OK(infer_step(one, text[i], b, &e), e);
        CHECK_OK(infer_step(one, text[i + 1], b + V, &e), e);
        CHECK(!memcmp(a, b, 2 * V * sizeof *a), "tokens %d and %d differ", i, i + 1);
    }
    free(a);
    infer_free(one);
    infer_free(few);
}

/* A text is read in two stretches and then given token by token, whatever is guessed: the guesses
 * are the defined ones. Later it is taken back and read again. */
static void check_guesses(const struct subject *s, const int32_t *text)
{
    struct err e = {0};
    struct infer *t = NULL;
    struct draft *d = NULL;
    int32_t want[TEXT + 2] = {0};
    int V = s->m->hp.vocab;
    float *logits = calloc((size_t)V, sizeof *logits);
    define_guesses(s, text, TEXT, want);
    CHECK_OK(infer_new(&t, s->g, TEXT + 2, DTYPE_F32, &e), e);
    CHECK_OK(draft_new(&d, s->g, t, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(t, text, 4, INFER_NONE, NULL, NULL, &e), e);
    CHECK_OK(infer_prefill(t, text + 4, PROMPT - 4, INFER_NONE, NULL, NULL, &e), e);
    for (int i = PROMPT; i < TEXT; i++) {
        CHECK_OK(draft_step(d, t, text[i], V, logits, &e), e);
        if (draft_guess(d) >= 0) /* else the token before was guessed, and nothing computed */
            CHECK(draft_guess(d) == want[i + 1], "token %d: guessed %d, not %d", i + 1,
                  draft_guess(d), want[i + 1]);
    }
    draft_settle(d);
    infer_rewind(t, 5); /* the state at 4 is gone, the text must not care */
    CHECK_OK(infer_prefill(t, text + 5, 6, INFER_NONE, NULL, NULL, &e), e);
    CHECK_OK(draft_step(d, t, text[11], V, logits, &e), e);
    CHECK(draft_guess(d) >= 0, "guessing goes on after a rewind");
    draft_settle(d);
    infer_rewind(t, 0);
    CHECK_OK(infer_prefill(t, text, 8, INFER_NONE, NULL, NULL, &e), e);
    CHECK_OK(draft_step(d, t, text[8], V, logits, &e), e);
    CHECK(draft_guess(d) == want[9], "from the beginning again");
    free(logits);
    draft_free(d);
    infer_free(t);
}

/* A model whose layers add nothing turns a token into the next one, and so does its prediction
 * layer, when its projection takes the embedding: every guess is right. */
static void check_all_right(const char *path)
{
    struct err e = {0};
    struct subject s = {0};
    struct backend_options opt = {.threads = 1, .exact = true};
    CHECK_OK(model_open(&s.m, path, &e), e);
    CHECK_OK(backend_open(&s.b, "cpu", &opt, &e), e);
    size_t D = (size_t)s.m->hp.hidden, most = D * (size_t)(s.m->hp.ffn + 64 * s.m->hp.n_head);
    float *zero = calloc(most, sizeof *zero), *join = calloc(2 * D * D, sizeof *join);
    for (size_t i = 0; i < D; i++)
        join[i * 2 * D + i] = 1;
    for (int l = 0; l <= s.m->hp.n_layer; l++) {
        struct model_layer *y = l < s.m->hp.n_layer ? &s.m->layer[l] : &s.m->mtp->model.layer[0];
        y->o.data = y->down.data = zero;
        y->o.dtype = y->down.dtype = DTYPE_F32;
    }
    s.m->mtp->eh_proj.data = join;
    CHECK_OK(engine_new(&s.g, s.m, s.b, NULL, &e), e);
    struct draft_count count = compare(&s, 0, 0, TEXT + 2, NULL);
    CHECK(count.right == count.made && count.made >= FOLLOW / 2 - 1, "%lld of %lld", count.right,
          count.made);
    compare(&s, 0, 0, PROMPT + 4, NULL); /* to the context's end */
    compare(&s, 0, 0, PROMPT + 5, NULL);
    engine_free(s.g);
    backend_close(s.b);
    model_free(s.m);
    free(zero);
    free(join);
}

static void check_model(const char *name, enum stock_engine to, bool fitted)
{
    struct err e = {0};
    struct subject s = {0};
    struct backend_options opt = {.threads = 2, .exact = true};
    char path[600];
    int32_t text[TEXT];
    snprintf(path, sizeof path, "%s/%s-%s", test_tmpdir(), path_base(name), stock_key(to));
    make_export(name, to, fitted, path);
    check_layout(path);
    CHECK_OK(model_open(&s.m, path, &e), e);
    CHECK(s.m && s.m->mtp && s.m->hp.skipped_layers == 0, "the layer is read");
    CHECK_OK(backend_open(&s.b, "cpu", &opt, &e), e);
    if (!s.m || !s.b || engine_new(&s.g, s.m, s.b, NULL, &e)) {
        CHECK(false, "%s", e.text);
        return;
    }
    compare(&s, 0, 0, TEXT + 2, text);
    for (uint64_t seed = 1; seed < 6; seed++)
        compare(&s, 0.7, seed, TEXT + 2, NULL);
    compare(&s, 1.3, 9, PROMPT + 7, NULL);
    check_guesses(&s, text);
    check_bits(&s, text);
    engine_free(s.g);
    backend_close(s.b);
    opt.exact = false; /* the kernels that chats run on */
    CHECK_OK(backend_open(&s.b, "cpu", &opt, &e), e);
    CHECK_OK(engine_new(&s.g, s.m, s.b, NULL, &e), e);
    check_bits(&s, text);
    for (uint64_t seed = 0; seed < 4; seed++)
        compare(&s, seed ? 0.9 : 0, seed, TEXT + 2, NULL);
    engine_free(s.g);
    backend_close(s.b);
    model_free(s.m);
    check_all_right(path);
}

int main(void)
{
    check_model("arch/llama_gqa_tied", STOCK_HF, true);
    check_model("arch/llama2_mha", STOCK_VLLM, false);
    check_model("arch/qwen2_bias", STOCK_HF, true);
    return test_end("draft");
}
