/* Reading an export back with our own reader and comparing its logits with the conversion's, both
 * in exact arithmetic on the processor. An export that computes something else is not published. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/pool.h"
#include "sessions/export.h"
#include "sessions/infer.h"

#define CHECK_TOKENS 96
/* Four bits a weight leave an NMSE near 1e-2; a wrong norm or a wrong rope is near 1. */
#define CHECK_LIMIT 0.25

static const char check_text[] =
    "A lathe turns the work while the tool stands still. The first ones were driven by a bow or a "
    "treadle; later came water, steam and electric motors, and with them screws that were all the "
    "same.\n\n1. Which tools does a turner need?\n2. What is 17 * 23? It is 391.\n\n"
    "int main(void) { return 0; }\n";

static int check_ids(const struct export_job *j, struct ids *ids, struct err *e)
{
    int rc = OK, limit = j->model->hp.context < CHECK_TOKENS ? j->model->hp.context : CHECK_TOKENS;
    if (j->tokenizer)
        rc = tokenizer_encode(j->tokenizer, check_text, strlen(check_text), TOKENIZE_BOS, ids, e);
    else if (!mem_grow((void **)&ids->v, &ids->cap, CHECK_TOKENS, sizeof *ids->v))
        rc = err_nomem(e, CHECK_TOKENS * sizeof *ids->v, "token ids");
    for (int i = 0; !rc && !j->tokenizer && i < limit; i++) {
        ids->v[i] = (int32_t)((i * 2654435761u >> 7) % (unsigned)j->model->hp.vocab);
        ids->n++;
    }
    if (ids->n > (size_t)limit)
        ids->n = (size_t)limit;
    return rc;
}

static int logits(const struct model *m, struct backend *b, const struct ids *ids, float **out,
                  const struct progress *p, struct err *e)
{
    struct engine *g = NULL;
    struct infer *t = NULL;
    size_t n = ids->n * (size_t)m->hp.vocab;
    *out = mem_calloc(n, sizeof **out);
    int rc = *out ? engine_new(&g, m, b, NULL, e) : err_nomem(e, n * sizeof **out, "logits");
    if (!rc)
        rc = infer_new(&t, g, (int)ids->n, DTYPE_F32, e);
    if (!rc)
        rc = infer_prefill(t, ids->v, (int)ids->n, INFER_ALL, *out, p, e);
    infer_free(t);
    engine_free(g);
    return rc;
}

static void compare(const float *a, const float *b, int rows, int V, struct export_check *c)
{
    double off = 0, all = 0;
    c->tokens = rows;
    for (int t = 0; t < rows; t++, a += V, b += V) {
        double mean_a = 0, mean_b = 0;
        int top_a = 0, top_b = 0;
        for (int i = 0; i < V; i++) {
            mean_a += (double)a[i] / V;
            mean_b += (double)b[i] / V;
            top_a = a[i] > a[top_a] ? i : top_a;
            top_b = b[i] > b[top_b] ? i : top_b;
        }
        for (int i = 0; i < V; i++) {
            double x = (double)a[i] - mean_a, y = (double)b[i] - mean_b;
            off += (x - y) * (x - y);
            all += y * y;
        }
        c->same_top1 += top_a == top_b;
    }
    c->nmse = all > 0 ? off / all : 0;
}

/* Formats that our own reader does not open yet are said, not failed. */
static int skipped(struct export_check *c, const struct err *why)
{
    c->done = false;
    c->passed = true;
    snprintf(c->text, sizeof c->text, "%.250s", why->text);
    return OK;
}

int export_compare(struct export_job *j, struct err *e)
{
    struct export_check *c = &j->report->check;
    struct backend_options opt = {.exact = true, .background = true};
    struct model *back = NULL;
    struct backend *b = NULL;
    struct export_narrowed narrowed = {0};
    struct ids ids = {0};
    float *want = NULL, *got = NULL, *whole = NULL;
    *c = (struct export_check){.name = "read back"};
    if (!progress_report(j->p, "reading back", 0, 1))
        return err_set(e, ERR_CANCELLED, "export stopped");
    int rc = model_open(&back, j->dir, e);
    if (rc == ERR_UNSUPPORTED)
        return skipped(c, e);
    if (!rc)
        rc = backend_open(&b, "cpu", &opt, e);
    if (!rc)
        rc = check_ids(j, &ids, e);
    if (!rc && j->x.narrow)
        rc = export_narrowed_new(&narrowed, j, e);
    const struct model *meant = j->x.narrow ? &narrowed.model : j->x.m;
    if (!rc)
        rc = logits(meant, b, &ids, &want, j->p, e);
    if (!rc && meant != j->model) { /* what was meant to be lost is counted by itself */
        rc = logits(j->model, b, &ids, &whole, j->p, e);
        j->report->loss =
            (struct export_check){.name = !j->x.narrow         ? "folded biases"
                                          : j->x.m == j->model ? "narrow queries"
                                                               : "narrow queries and folded biases",
                                  .done = !rc};
        if (!rc)
            compare(want, whole, (int)ids.n, j->model->hp.vocab, &j->report->loss);
    }
    if (!rc)
        rc = logits(back, b, &ids, &got, j->p, e);
    if (!rc) {
        compare(got, want, (int)ids.n, j->model->hp.vocab, c);
        c->done = true;
        c->passed = c->nmse < CHECK_LIMIT;
        if (!c->passed && j->x.freq_error > 1e-6)
            rc =
                err_set(e, ERR_NUMERIC,
                        "%s cannot be told this model's scaled rope frequencies, and the nearest "
                        "ones (off by up to %.2g radians a token) make another model of it "
                        "(normalised squared error %.2g of its logits): it was not kept; export to "
                        "hf, or convert with a narrower rope",
                        stock_name(j->x.engine), j->x.freq_error, c->nmse);
        else if (!c->passed)
            rc = err_set(e, ERR_NUMERIC,
                         "the export computes something else than the conversion (normalised "
                         "squared error %.2g of its logits): it was not kept",
                         c->nmse);
    }
    if (!rc && c->passed && j->x.mtp)
        rc = export_check_drafts(j, back, b, &ids, e);
    ids_free(&ids);
    export_narrowed_free(&narrowed);
    free(whole);
    free(want);
    free(got);
    backend_close(b);
    model_free(back);
    return rc;
}
