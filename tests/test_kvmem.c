/* The cache formula, its fit and its text; spectra's sums. */
#include "core/kvmem.h"
#include "core/spectrum.h"
#include "tests/support.h"

static void check_text(double bytes, const char *want)
{
    char text[32];
    kvmem_text(bytes, text, sizeof text);
    CHECK(!strcmp(text, want), "%s, not %s", text, want);
}

static void test_bytes(void)
{
    int n[30];
    for (int l = 0; l < 30; l++)
        n[l] = kvmem_gqa_numbers(3, 64);
    CHECK(kvmem_bytes(n, 30, DTYPE_F16, 1, 1) == 23040);
    CHECK(kvmem_bytes(n, 30, DTYPE_F32, 1, 1) == 46080);
    CHECK(kvmem_bytes(n, 30, DTYPE_Q8_0, 2, 1) == 2 * 30 * 12 * 34); /* blocks of 32 */
    CHECK(kvmem_row(104, DTYPE_Q8_0) == 4 * 34 && kvmem_row(104, DTYPE_BF16) == 208);
    CHECK(kvmem_type("bf16") == DTYPE_BF16 && kvmem_type("q8_0") == DTYPE_Q8_0);
    CHECK(kvmem_type("F16") == DTYPE_COUNT && kvmem_type("q4_0") == DTYPE_COUNT);
    CHECK(kvmem_bytes(n, 30, DTYPE_F16, 8192, 1) == (size_t)180 << 20);
    CHECK(kvmem_fit(n, 30, DTYPE_F16, 8192, (size_t)24 << 30) == 136);
    CHECK(kvmem_fit(n, 30, DTYPE_F16, 8192, 1000) == 0);
    CHECK(kvmem_bytes(n, 30, DTYPE_F16, SIZE_MAX / 2, 3) == SIZE_MAX);
    CHECK(kvmem_bytes((int[]){-1}, 1, DTYPE_F16, 1, 1) == SIZE_MAX);
    CHECK(kvmem_fit(n, 30, DTYPE_F16, SIZE_MAX / 2, (size_t)1 << 40) == 0);
    CHECK(kvmem_fit(n, 30, DTYPE_F16, 0, 1000) == 0);
    CHECK(kvmem_mla_numbers(128, 64) == 192);
}

static void test_text(void)
{
    check_text(0, "0 B");
    check_text(1023, "1023 B");
    check_text(1024, "1.00 KiB");
    check_text(23040, "22.5 KiB");
    check_text(180.0 * (1 << 20), "180 MiB");
    check_text(1023.9 * 1024, "1.00 MiB");
    check_text(99.96 * 1024, "100 KiB");
    check_text(9.996 * 1024, "10.0 KiB");
    check_text(24.0 * (1 << 30), "24.0 GiB");
}

static void test_spectrum(void)
{
    struct spectrum s, copy;
    struct err e;
    CHECK_OK(spectrum_init(&s, 4, 2, 2, &e), e);
    for (int i = 0; i < 4; i++) {
        s.joint[i] = 8 >> i;
        s.key_share[i] = i % 2;
    }
    CHECK(spectrum_energy(&s, 0) == 0);
    CHECK(fabs(spectrum_energy(&s, 1) - 8.0 / 15) < 1e-15); /* one rounding */
    CHECK(spectrum_energy(&s, 4) == 1 && spectrum_energy(&s, 9) == 1);
    CHECK(spectrum_dropped(&s, 2) == 3 && spectrum_dropped(&s, 4) == 0);
    CHECK(spectrum_key_share(&s, 2) == 0.5 && spectrum_key_share(&s, 0) == 0);
    CHECK_OK(spectrum_copy(&copy, &s, &e), e);
    CHECK(copy.n == 4 && copy.joint[1] == 4 && copy.joint != s.joint);
    spectrum_done(&s);
    CHECK(spectrum_energy(&s, 0) == 1);
    spectrum_done(&copy);
}

int main(void)
{
    test_bytes();
    test_text();
    test_spectrum();
    return test_end("kvmem");
}
