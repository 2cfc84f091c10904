/* Number formats: against stored blocks of a published reader, against the definition of rounding,
 * and there and back. */
#include "core/file.h"
#include "core/json.h"
#include "core/tensor.h"
#include "tests/support.h"

/* Every 16-bit pattern survives the way to fp32 and back. */
static void test_round_trip_16(void)
{
    for (unsigned h = 0; h < 65536; h++) {
        float f = f16_to_f32((uint16_t)h), b = bf16_to_f32((uint16_t)h);
        CHECK(isnan(f) ? isnan(f16_to_f32(f32_to_f16(f))) : f32_to_f16(f) == h, "f16 %04x", h);
        CHECK(isnan(b) ? isnan(bf16_to_f32(f32_to_bf16(b))) : f32_to_bf16(b) == h, "bf16 %04x", h);
    }
    CHECK(f16_to_f32(0x3c00) == 1 && f16_to_f32(0xc000) == -2 && f16_to_f32(1) == 0x1p-24f);
    CHECK(f16_to_f32(0x7bff) == 65504 && isinf(f16_to_f32(0xfc00)));
}

/* Nearest, ties to even: the result is no farther than either neighbour, and even on a tie. */
static void test_nearest_even(void)
{
    for (unsigned h = 0; h < 0x7bff; h++) {
        double low = f16_to_f32((uint16_t)h), high = f16_to_f32((uint16_t)(h + 1));
        float mid = (float)((low + high) / 2); /* exact: 12 bits */
        CHECK(f32_to_f16(mid) == (h & 1 ? h + 1 : h), "f16 tie above %04x", h);
        CHECK(f32_to_f16(nextafterf(mid, 0)) == h, "f16 below tie %04x", h);
        CHECK(f32_to_f16(nextafterf(mid, 1e9f)) == h + 1, "f16 above tie %04x", h);
    }
    for (unsigned h = 0; h < 0x7f7f; h++) {
        uint32_t bits = h << 16 | 0x8000;
        float mid;
        memcpy(&mid, &bits, sizeof mid);
        CHECK(f32_to_bf16(mid) == (h & 1 ? h + 1 : h), "bf16 tie above %04x", h);
        CHECK(f32_to_bf16(nextafterf(mid, 0)) == h, "bf16 below tie %04x", h);
        CHECK(f32_to_bf16(nextafterf(mid, INFINITY)) == h + 1, "bf16 above tie %04x", h);
    }
    CHECK(f32_to_f16(65519.99f) == 0x7bff && f32_to_f16(65520) == 0x7c00);
    CHECK(f32_to_f16(-1e30f) == 0xfc00 && f32_to_f16(-0.0f) == 0x8000);
    CHECK(f32_to_bf16(3.4e38f) == 0x7f80 && f32_to_bf16(-0.0f) == 0x8000);
}

/* Blocks written and read by other programs (tests/arch/GGUF.md): equal to the last bit. */
static void test_stored_blocks(void)
{
    struct err e = {0};
    cJSON *index = NULL;
    struct file_map bin = {0};
    CHECK_OK(json_read_file(&index, test_path("arch/quant/index.json"), 1 << 20, &e), e);
    CHECK_OK(file_map_open(&bin, test_path("arch/quant/quant.bin"), &e), e);
    int seen = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, json_get(index, "types"))
    {
        const char *name = json_str_or(item, "type", "");
        enum dtype type = dtype_from_name(name);
        if (type == DTYPE_COUNT)
            continue;
        long long n = 0, raw = 0, f32 = 0, bytes = 0, ggml = 0;
        CHECK_OK(json_int(item, "n", 1, 1 << 20, &n, name, &e), e);
        CHECK_OK(json_int(item, "id", 0, 100, &ggml, name, &e), e);
        CHECK_OK(json_int(item, "raw_offset", 0, 1 << 24, &raw, name, &e), e);
        CHECK_OK(json_int(item, "raw_bytes", 0, 1 << 24, &bytes, name, &e), e);
        CHECK_OK(json_int(item, "f32_offset", 0, 1 << 24, &f32, name, &e), e);
        CHECK(dtype_from_ggml((int)ggml) == type, "%s", name);
        CHECK(dtype_bytes(type, (size_t)n) == (size_t)bytes, "%s", name);
        float *y = calloc((size_t)n, sizeof *y);
        dtype_to_f32(type, bin.data + raw, y, (size_t)n);
        CHECK(!memcmp(y, bin.data + f32, (size_t)n * sizeof *y), "%s differs", name);
        free(y);
        seen++;
    }
    CHECK(seen == DTYPE_COUNT - 1, "%d of %d types have stored blocks", seen,
          DTYPE_COUNT - 1); /* all but our own */
    cJSON_Delete(index);
    file_map_close(&bin);
}

/* The same blocks as the reference program makes, to the last bit (tests/arch/GGUF.md). */
static void test_reference_rounding(void)
{
    static const enum dtype types[] = {DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1};
    struct err e = {0};
    struct file_map bin = {0};
    float x[512];
    uint8_t raw[544];
    size_t at = sizeof x;
    CHECK_OK(file_map_open(&bin, test_path("arch/quant/rounding.bin"), &e), e);
    if (bin.size != sizeof x + 544 + 288 + 320) {
        CHECK(false, "%zu bytes", bin.size);
        return;
    }
    memcpy(x, bin.data, sizeof x);
    for (int i = 0; i < 3; i++) {
        dtype_from_f32(types[i], x, raw, 512);
        CHECK(!memcmp(raw, bin.data + at, dtype_bytes(types[i], 512)), "%s",
              dtype_traits(types[i])->name);
        at += dtype_bytes(types[i], 512);
    }
    file_map_close(&bin);
}

/* Quantising: the error is at most half a step (plus what rounding d to fp16 costs at the largest
 * q), and zeros stay zeros. */
static void test_quantise(void)
{
    static const struct {
        enum dtype type;
        double levels; /* steps between the block's ends */
    } cases[] = {{DTYPE_Q8_0, 254}, {DTYPE_Q4_0, 16}, {DTYPE_Q4_1, 15}};
    uint64_t seed = 7;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        enum dtype type = cases[c].type;
        for (int round = 0; round < 500; round++) {
            float x[32], y[32], zero[32] = {0};
            uint8_t block[40];
            double top = 0, scale = pow(10, test_uniform(&seed) * 6 - 3);
            for (int i = 0; i < 32; i++) {
                x[i] = (float)(test_normal(&seed) * scale);
                top = fmax(top, fabs((double)x[i]));
            }
            dtype_from_f32(type, x, block, 32);
            dtype_to_f32(type, block, y, 32);
            /* Q4_0 clips the end opposite its largest number by one step; 2⁻¹⁰·top for fp16. */
            double step = 2 * top / cases[c].levels;
            double limit = step * (type == DTYPE_Q4_0 ? 1 : 0.5) + top * 0x1p-10 + 16 * 0x1p-24;
            for (int i = 0; i < 32; i++)
                CHECK(fabs((double)y[i] - x[i]) <= limit, "%s %g as %g", dtype_traits(type)->name,
                      (double)x[i], (double)y[i]);
            dtype_from_f32(type, zero, block, 32);
            dtype_to_f32(type, block, y, 32);
            for (int i = 0; i < 32; i++)
                CHECK(y[i] == 0, "%s zero as %g", dtype_traits(type)->name, (double)y[i]);
        }
    }
}

static void test_tensor(void)
{
    struct err e = {0};
    float x[128];
    uint8_t raw[4 * 34];
    for (int i = 0; i < 128; i++)
        x[i] = (float)(i - 60);
    x[127] = 127; /* amax 127 in its block: q = x */
    dtype_from_f32(DTYPE_Q8_0, x, raw, 128);
    struct tensor t = {raw, DTYPE_Q8_0, 2, {2, 64}};
    float row[64], *all = NULL;
    tensor_row_f32(&t, 1, row);
    CHECK_OK(tensor_to_f32(&t, &all, &e), e);
    CHECK(all && !memcmp(row, all + 64, sizeof row));
    CHECK(tensor_elements(&t) == 128 && tensor_bytes(&t) == sizeof raw);
    struct matrix m = tensor_matrix(&t);
    CHECK(m.rows == 2 && m.cols == 64 && m.data == raw);
    CHECK_OK(tensor_check_finite(&t, "t", &e), e);
    raw[2 * 34 + 1] = 0x7c; /* d of the third block becomes infinite (0x7c..: inf or NaN) */
    CHECK(tensor_check_finite(&t, "some.weight", &e) == ERR_NUMERIC, "%s", e.text);
    CHECK(strstr(e.text, "some.weight: number 64"), "%s", e.text);
    free(all);
    struct tensor none = {0};
    CHECK(tensor_elements(&none) == 0 && tensor_bytes(&none) == 0);
}

/* Blocks that we make by a search of our own: the error of their bits, and exact where the numbers
 * fit the grid. */
static void test_make_k(void)
{
    /* A normal run of 32 in 16 levels: (range/15)²/12 with a range near 4σ gives 6e-3; of 16 in 64
     * levels around zero: 4e-4, of 32 5e-4. Twice that is allowed. */
    static const struct {
        enum dtype type;
        double most;
    } list[] = {{DTYPE_Q4_K, 1.2e-2}, {DTYPE_Q6_K, 8e-4}, {DTYPE_Q6_0, 1e-3}};
    enum { N = 4096 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    uint8_t *b = malloc(N * 4);
    for (size_t k = 0; k < sizeof list / sizeof *list; k++) {
        uint64_t seed = 11;
        for (int i = 0; i < N; i++) /* blocks of very different size */
            x[i] = (float)(test_normal(&seed) * pow(2, i / 256 - 8));
        dtype_from_f32(list[k].type, x, b, N);
        dtype_to_f32(list[k].type, b, y, N);
        double worst = 0;
        for (int i = 0; i < N; i += 256)
            worst = fmax(worst, test_nmse(y + i, x + i, 256));
        printf("%s: NMSE at most %.1e\n", dtype_traits(list[k].type)->name, worst);
        CHECK(worst <= list[k].most, "%s: %g", dtype_traits(list[k].type)->name, worst);
        memset(x, 0, 256 * sizeof *x);
        for (int i = 256; i < 512; i++)
            x[i] = -0.75f;
        dtype_from_f32(list[k].type, x, b, 512);
        dtype_to_f32(list[k].type, b, y, 512);
        for (int i = 0; i < 512; i++) /* scales are halves: 11 bits */
            CHECK(fabsf(y[i] - x[i]) <= 0.75f / 1024, "%d: %g", i, (double)y[i]);
    }
    free(x);
    free(y);
    free(b);
}

int main(void)
{
    CHECK(dtype_from_name("IQ2_S") == DTYPE_COUNT && dtype_from_ggml(22) == DTYPE_COUNT);
    CHECK(dtype_from_name("Q6_0") == DTYPE_COUNT); /* no file has it */
    CHECK(dtype_can_write(DTYPE_Q4_1) && !dtype_can_write(DTYPE_Q5_K));
    test_round_trip_16();
    test_nearest_even();
    test_stored_blocks();
    test_reference_rounding();
    test_quantise();
    test_make_k();
    test_tensor();
    return test_end("dtype");
}
