/* Every operation of grad: its gradient against central finite differences in fp64, and its fp32
 * twins against fp64. */
#include "core/base.h"
#include "kernels/grad.h"
#include "kernels/linalg.h"
#include "kernels/pool.h"
#include "tests/support.h"

/* Differences of step 1e-5·|x| cost about 1e-10 of truncation and 1e-11 of rounding relative to the
 * gradient; the claim is 1e-6. */
#define STEP 1e-5
#define FD_MAX 1e-6

static const struct grad_ops *const op = &grad_f64;
static struct pool *pool;
static uint64_t seed = 5;

static double *normal(size_t n)
{
    double *x = calloc(n ? n : 1, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = test_normal(&seed);
    return x;
}

/* A function of x[n], whose gradient g[n] is claimed. Compared along every axis for few numbers,
 * else on a sample, all against the gradient's size. */
static void check(const char *name, double (*f)(void *), void *user, double *x, const double *g,
                  size_t n)
{
    double worst = 0, size = 0;
    for (size_t i = 0; i < n; i++)
        size += g[i] * g[i] / (double)n;
    size = sqrt(size);
    for (size_t k = 0; k < (n < 300 ? n : 300); k++) {
        size_t i = n < 300 ? k : (size_t)(test_uniform(&seed) * (double)n);
        double keep = x[i], h = STEP * (fabs(keep) > 1 ? fabs(keep) : 1);
        x[i] = keep + h;
        double up = f(user);
        x[i] = keep - h;
        double down = f(user);
        x[i] = keep;
        worst = fmax(worst, fabs((up - down) / (2 * h) - g[i]) / fmax(fabs(g[i]), size));
    }
    printf("%-24s %4zu numbers, worst %.1e\n", name, n, worst);
    CHECK(worst <= FD_MAX && size > 0, "%s: gradient is off by %g", name, worst);
}

static double dot(const double *a, const double *b, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

/* --- norm, rope, glu ---------------------------------------------------------------------- */

enum { ROWS = 5, N = 24 };

struct rowwise {
    double *x, *up, *gamma, *cos, *sin, *c, *y;
    int what; /* enum glu_act, or: */
};
enum { NORM = 10, ROPE };

static double rowwise(void *user)
{
    struct rowwise *r = user;
    if (r->what == NORM) {
        op->norm(pool, r->y, r->x, r->gamma, 1e-5, ROWS, N);
    } else if (r->what == ROPE) {
        memcpy(r->y, r->x, sizeof(double[ROWS * N]));
        op->rope(pool, r->y + 2, N, 2, 10, 8, r->cos, r->sin, ROWS, false);
    } else {
        op->glu(pool, r->y, r->x, r->up, (enum glu_act)r->what, ROWS * N);
    }
    return dot(r->c, r->y, ROWS * N);
}

static void test_rowwise(void)
{
    size_t n = ROWS * N;
    struct rowwise r = {normal(n), normal(n), normal(N), normal(n),
                        normal(n), normal(n), normal(n), NORM};
    double *g = normal(n), *g2 = normal(n), base[ROWS * N];
    memcpy(base, g, sizeof base);
    op->norm_back(pool, g, r.c, r.x, r.gamma, 1e-5, ROWS, N, true);
    for (size_t i = 0; i < n; i++)
        g[i] -= base[i];
    check("norm, added", rowwise, &r, r.x, g, n);
    memcpy(g, r.c, n * sizeof *g); /* in place */
    op->norm_back(pool, g, g, r.x, r.gamma, 1e-5, ROWS, N, false);
    check("norm, in place", rowwise, &r, r.x, g, n);
    r.what = ROPE;
    memcpy(g, r.c, n * sizeof *g);
    op->rope(pool, g + 2, N, 2, 10, 8, r.cos, r.sin, ROWS, true);
    check("rope", rowwise, &r, r.x, g, n);
    for (r.what = GLU_SILU; r.what <= GLU_GELU_TANH; r.what++) {
        op->glu_back(pool, g, g2, r.c, r.x, r.up, (enum glu_act)r.what, n);
        check(r.what == GLU_SILU ? "silu, gate" : "gelu, gate", rowwise, &r, r.x, g, n);
        check(r.what == GLU_SILU ? "silu, up" : "gelu, up", rowwise, &r, r.up, g2, n);
    }
    double *all[] = {r.x, r.up, r.gamma, r.cos, r.sin, r.c, r.y, g, g2};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* --- attention ---------------------------------------------------------------------------- */

struct attention {
    struct grad_attn a;
    double *q, *kv, *kr, *out, *c;
    size_t n_out;
};

static double attention(void *user)
{
    struct attention *t = user;
    op->attn(pool, &t->a);
    return dot(t->c, t->out, t->n_out);
}

/* Sequences longer than the 64 queries of a block, and shorter ones. */
static void check_attention(const char *name, double softcap, int window, int R)
{
    enum { H = 3, P = 6, V = 5, KR = 9, LEN = 70 + 3 + 130 };
    static const int start[] = {0, 70, 73, LEN};
    size_t nq = (size_t)LEN * H * (P + R), nkv = (size_t)LEN * H * (P + V), nkr = (size_t)LEN * KR;
    struct attention t = {
        .q = normal(nq), .kv = normal(nkv), .kr = normal(nkr), .n_out = (size_t)LEN * H * V};
    t.out = normal(t.n_out);
    t.c = normal(t.n_out);
    t.a = (struct grad_attn){.H = H,
                             .P = P,
                             .R = R,
                             .V = V,
                             .scale = 0.7,
                             .softcap = softcap,
                             .window = window,
                             .start = start,
                             .n_seq = 3,
                             .q = t.q,
                             .kv = t.kv,
                             .kr = t.kr,
                             .kr_ld = KR,
                             .out = t.out,
                             .dout = t.c};
    double *dq = normal(nq), *dkv = normal(nkv), *dkr = normal(nkr),
           *heads = normal((size_t)LEN * H * (R ? R : 1));
    double *scratch = normal(grad_attn_scratch(&t.a, pool_threads(pool)));
    char label[64];
    t.a.scratch = scratch;
    t.a.dq = dq;
    t.a.dkv = dkv;
    t.a.dkr = dkr;
    t.a.dkr_heads = heads;
    op->attn(pool, &t.a);
    op->attn_back(pool, &t.a);
    snprintf(label, sizeof label, "attention %s, q", name);
    check(label, attention, &t, t.q, dq, nq);
    snprintf(label, sizeof label, "attention %s, k and v", name);
    check(label, attention, &t, t.kv, dkv, nkv);
    for (size_t i = 0; i < nkr; i++) /* only R of each row are the op's */
        if ((int)(i % KR) >= R)
            dkr[i] = 0;
    snprintf(label, sizeof label, "attention %s, rope key", name);
    if (R)
        check(label, attention, &t, t.kr, dkr, nkr);
    double *all[] = {t.q, t.kv, t.kr, t.out, t.c, dq, dkv, dkr, heads, scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* --- loss --------------------------------------------------------------------------------- */

enum { KL_ROWS = 4, VOCAB = 37 };

struct loss {
    double *z;
    float teacher[KL_ROWS * VOCAB];
    double softcap, mix, weight;
    double kl[KL_ROWS], nll[KL_ROWS];
};
static const int32_t targets[KL_ROWS] = {3, -1, 36, 0};

static void run_loss(struct loss *l, double *z, double weight)
{
    struct grad_kl a = {.rows = KL_ROWS,
                        .V = VOCAB,
                        .teacher = l->teacher,
                        .student = z,
                        .softcap = l->softcap,
                        .mix = l->mix,
                        .weight = weight,
                        .target = targets,
                        .kl = l->kl,
                        .nll = l->nll};
    op->kl(pool, &a);
}

static double loss(void *user)
{
    struct loss *l = user;
    double z[KL_ROWS * VOCAB], sum = 0;
    memcpy(z, l->z, sizeof z);
    run_loss(l, z, 0);
    for (int i = 0; i < KL_ROWS; i++) {
        double mix = targets[i] < 0 ? 0 : l->mix;
        sum += l->weight * ((1 - mix) * l->kl[i] + (mix > 0 ? mix * l->nll[i] : 0));
    }
    return sum;
}

static void check_loss(const char *name, double softcap, double mix)
{
    struct loss l = {.z = normal(KL_ROWS * VOCAB), .softcap = softcap, .mix = mix, .weight = 0.25};
    double g[KL_ROWS * VOCAB];
    for (int i = 0; i < KL_ROWS * VOCAB; i++)
        l.teacher[i] = (float)(3 * test_normal(&seed));
    memcpy(g, l.z, sizeof g);
    run_loss(&l, g, l.weight);
    CHECK(isnan(l.nll[1]) && l.nll[0] > 0 && l.kl[1] > 0, "losses of %s", name);
    check(name, loss, &l, l.z, g, KL_ROWS * VOCAB);
    for (int i = 0; i < VOCAB; i++) /* the teacher's own logits: no loss */
        l.z[i] = l.teacher[i];
    if (softcap == 0) {
        loss(&l);
        CHECK(fabs(l.kl[0]) < 1e-14, "KL of a model with itself is %g", l.kl[0]);
    }
    free(l.z);
}

struct matched {
    double *x;
    float want[ROWS * N];
};

static double matched(void *user)
{
    struct matched *m = user;
    double d[ROWS * N] = {0};
    return op->match(pool, d, m->x, m->want, 0.3, ROWS * N);
}

static void test_match(void)
{
    struct matched m = {.x = normal(ROWS * N)};
    double g[ROWS * N] = {0};
    for (int i = 0; i < ROWS * N; i++)
        m.want[i] = (float)test_normal(&seed);
    op->match(pool, g, m.x, m.want, 0.3, ROWS * N);
    check("layer matching", matched, &m, m.x, g, ROWS * N);
    free(m.x);
}

/* --- fp32 against fp64 -------------------------------------------------------------------- */

/* Runs the same attention and loss in a table of fp32. */
static void check_f32(const struct grad_ops *f)
{
    enum { H = 2, P = 8, R = 4, V = 8, LEN = 90, HUGE = 3000 };
    static const int start[] = {0, LEN};
    size_t nq = LEN * H * (P + R), nkv = LEN * H * (P + V), no = LEN * H * V;
    double *q = normal(nq), *kv = normal(nkv), *kr = normal(LEN * R), *out = normal(no);
    float *fq = calloc(nq, 4), *fkv = calloc(nkv, 4), *fkr = calloc(LEN * R, 4);
    float *fo = calloc(no, 4), *want = calloc(no, 4);
    for (size_t i = 0; i < nq; i++)
        q[i] = fq[i] = (float)q[i];
    for (size_t i = 0; i < nkv; i++)
        kv[i] = fkv[i] = (float)kv[i];
    for (size_t i = 0; i < LEN * R; i++)
        kr[i] = fkr[i] = (float)kr[i];
    struct grad_attn a = {.H = H,
                          .P = P,
                          .R = R,
                          .V = V,
                          .scale = 0.3,
                          .start = start,
                          .n_seq = 1,
                          .q = q,
                          .kv = kv,
                          .kr = kr,
                          .kr_ld = R,
                          .out = out};
    double *scratch = normal(grad_attn_scratch(&a, pool_threads(pool)));
    a.scratch = scratch;
    op->attn(pool, &a);
    op->to_f32(want, out, no);
    a.q = fq;
    a.kv = fkv;
    a.kr = fkr;
    a.out = fo;
    f->attn(pool, &a);
    double off = test_rel_error(fo, want, no);
    /* Sums of 90 products of fp32. */
    CHECK(off < 1e-5, "%s: attention is off by %g", f->name, off);
    float *t = calloc(HUGE, 4), *t2 = calloc(HUGE, 4), *z = calloc(HUGE, 4), *g = calloc(HUGE, 4);
    double *z64 = calloc(HUGE, 8), kl[2], nll[2];
    int32_t target = 7;
    for (int i = 0; i < HUGE; i++) {
        t[i] = t2[i] = (float)(4 * test_normal(&seed) - 20);
        z64[i] = z[i] = t[i] + (float)(0.5 * test_normal(&seed));
    }
    struct grad_kl l = {.rows = 1,
                        .V = HUGE,
                        .teacher = t,
                        .student = z64,
                        .mix = 0.1,
                        .weight = 1,
                        .target = &target,
                        .kl = &kl[0],
                        .nll = &nll[0]};
    op->kl(pool, &l);
    l.teacher = t2;
    l.student = z;
    l.kl = &kl[1];
    l.nll = &nll[1];
    f->kl(pool, &l);
    op->to_f32(g, z64, HUGE);
    double nmse = test_nmse(z, g, HUGE);
    printf("%-24s attention %.1e, KL %.6f off by %.1e, its gradient %.1e\n", f->name, off, kl[0],
           fabs(kl[1] - kl[0]), sqrt(nmse));
    /* Exponentials of differences near 20: 20 ulp. */
    CHECK(fabs(kl[1] - kl[0]) < 1e-5 && fabs(nll[1] - nll[0]) < 1e-5 && nmse < 1e-10,
          "%s: KL %g, not %g", f->name, kl[1], kl[0]);
    z[5] = NAN;
    f->kl(pool, &l);
    CHECK(isnan(kl[1]), "%s: a NaN must show", f->name);
    void *all[] = {q, kv, kr, out, fq, fkv, fkr, fo, want, scratch, t, t2, z, g, z64};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* One step of Adam by its definition. */
static void test_adam(void)
{
    double w = 1, g = 0.4, m = 0.1, v = 0.02;
    struct grad_adam a = {.rate = 0.01,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .fix1 = 0.19,
                          .fix2 = 0.0975,
                          .factor = 0.5};
    op->adam(NULL, &w, &g, &m, &v, 1, &a);
    double m1 = 0.9 * 0.1 + 0.1 * 0.2, v1 = 0.95 * 0.02 + 0.05 * 0.04;
    CHECK(fabs(m - m1) < 1e-15 && fabs(v - v1) < 1e-15, "moments of Adam");
    CHECK(fabs(w - (1 - 0.01 * (m1 / 0.19) / (sqrt(v1 / 0.0975) + 1e-8))) < 1e-15, "a step");
}

int main(void)
{
    struct err e = {0};
    linalg_init();
    CHECK_OK(pool_new(&pool, 2, false, &e), e);
    test_rowwise();
    check_attention("plain", 0, 0, 4);
    check_attention("capped", 2, 0, 4);
    check_attention("window", 0, 20, 4);
    check_attention("capped, window, no rope", 1.5, 67, 0);
    check_loss("KL", 0, 0);
    check_loss("KL and NLL", 0, 0.3);
    check_loss("KL and NLL, capped", 2.5, 0.3);
    test_match();
    check_f32(&grad_f32);
    check_f32(grad_fast());
    test_adam();
    pool_free(pool);
    return test_end("grad");
}
