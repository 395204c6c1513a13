//! Dot products over rows of vectors, exact or of their codes, with the widest arithmetic the processor has. No I/O, no
//! state.

use super::quantise::{Code, QueryCode};

/// Numbers in a vector.
pub const DIMENSION: usize = 384;

/// One vector, laid out so that a row begins with a cache line.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Vector([f32; DIMENSION]);

impl Vector {
    /// All zero.
    pub const ZERO: Vector = Vector([0.0; DIMENSION]);

    /// Takes `DIMENSION` finite numbers; `None` for anything else.
    pub fn new(numbers: &[f32]) -> Option<Self> {
        let numbers: [f32; DIMENSION] = numbers.try_into().ok()?;
        numbers.iter().all(|number| number.is_finite()).then_some(Vector(numbers))
    }

    /// Its numbers.
    pub fn numbers(&self) -> &[f32; DIMENSION] {
        &self.0
    }

    /// As `new`, of little-endian bytes, four a number.
    pub fn from_le_bytes(bytes: &[u8]) -> Option<Self> {
        let mut vector = Vector::ZERO;
        let (numbers, []) = bytes.as_chunks() else { return None };
        if numbers.len() != DIMENSION {
            return None;
        }
        for (number, bytes) in vector.0.iter_mut().zip(numbers) {
            *number = f32::from_le_bytes(*bytes);
        }
        vector.0.iter().all(|number| number.is_finite()).then_some(vector)
    }
}

/// Writes the dot product of each row with the query. The order of summation depends on the processor only, so the
/// same vectors give the same bits wherever they stand.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    name: &'static str,
    dots: fn(&[Vector], &Vector, &mut [f32]),
    products: fn(&[Code], &QueryCode, &mut [i32]),
}

impl Kernel {
    /// The fastest that this processor can run.
    pub fn detect() -> Self {
        *Self::available().last().unwrap_or(&Self::PORTABLE)
    }

    const PORTABLE: Kernel = Kernel { name: "portable", dots: dots_portable, products: products_portable };

    /// All that this processor can run, the fastest last.
    fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "only x86-64 has more than one")]
        let mut kernels = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: the processor has AVX2 and FMA, which is all that `x86::dots_avx2` needs.
                let dots =
                    |rows: &[Vector], query: &Vector, out: &mut [f32]| unsafe { x86::dots_avx2(rows, query, out) };
                // SAFETY: as above.
                let products = |codes: &[Code], query: &QueryCode, out: &mut [i32]| unsafe {
                    x86::products_avx2(codes, query, out)
                };
                kernels.push(Kernel { name: "avx2", dots, products });
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                // SAFETY: the processor has AVX-512F, which is all that `x86::dots_avx512` needs.
                let dots =
                    |rows: &[Vector], query: &Vector, out: &mut [f32]| unsafe { x86::dots_avx512(rows, query, out) };
                // SAFETY: the processor has AVX-512F and AVX-512BW, which is all that `x86::products_avx512` needs.
                let products = |codes: &[Code], query: &QueryCode, out: &mut [i32]| unsafe {
                    x86::products_avx512(codes, query, out)
                };
                kernels.push(Kernel { name: "avx512", dots, products });
            }
        }
        kernels
    }

    /// The instruction set it uses, for logs and reports.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// One dot product a row; `scores` is as long as `rows`.
    pub fn dots(&self, rows: &[Vector], query: &Vector, scores: &mut [f32]) {
        assert_eq!(rows.len(), scores.len(), "one score a row");
        (self.dots)(rows, query, scores);
    }

    /// The dot product of two vectors, bit for bit what `dots` gives.
    pub fn dot(&self, row: &Vector, query: &Vector) -> f32 {
        let mut score = [0.0];
        (self.dots)(std::slice::from_ref(row), query, &mut score);
        score[0]
    }

    /// One dot product of codes a row, exact; `products` is as long as `codes`.
    pub fn products(&self, codes: &[Code], query: &QueryCode, products: &mut [i32]) {
        assert_eq!(codes.len(), products.len(), "one product a row");
        (self.products)(codes, query, products);
    }
}

fn products_portable(codes: &[Code], query: &QueryCode, products: &mut [i32]) {
    for (code, product) in codes.iter().zip(products) {
        *product = code.0.iter().zip(&query.0).map(|(code, query)| i32::from(*code) * i32::from(*query)).sum();
    }
}

fn dots_portable(rows: &[Vector], query: &Vector, scores: &mut [f32]) {
    const LANES: usize = 16;
    for (row, score) in rows.iter().zip(scores) {
        // Sixteen sums side by side: the compiler may then use whatever vector registers the target has.
        let mut sums = [0.0_f32; LANES];
        for (row, query) in row.0.chunks_exact(LANES).zip(query.0.chunks_exact(LANES)) {
            for lane in 0..LANES {
                sums[lane] += row[lane] * query[lane];
            }
        }
        *score = sums.iter().sum();
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Code, DIMENSION, QueryCode, Vector};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn dots_avx2(rows: &[Vector], query: &Vector, scores: &mut [f32]) {
        const LANES: usize = 8;
        const SUMS: usize = 4;
        const { assert!(DIMENSION.is_multiple_of(LANES * SUMS)) };
        for (row, score) in rows.iter().zip(scores) {
            // Four sums hide the latency of a fused multiply-add.
            let mut sums = [_mm256_setzero_ps(); SUMS];
            for at in (0..DIMENSION).step_by(LANES * SUMS) {
                for (n, sum) in sums.iter_mut().enumerate() {
                    let at = at + n * LANES;
                    // SAFETY: `at + LANES` is at most DIMENSION, the length of both arrays; `loadu` needs no alignment.
                    let (a, b) =
                        unsafe { (_mm256_loadu_ps(row.0.as_ptr().add(at)), _mm256_loadu_ps(query.0.as_ptr().add(at))) };
                    *sum = _mm256_fmadd_ps(a, b, *sum);
                }
            }
            let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
            let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
            *score = _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn dots_avx512(rows: &[Vector], query: &Vector, scores: &mut [f32]) {
        const LANES: usize = 16;
        const SUMS: usize = 4;
        const { assert!(DIMENSION.is_multiple_of(LANES * SUMS)) };
        for (row, score) in rows.iter().zip(scores) {
            let mut sums = [_mm512_setzero_ps(); SUMS];
            for at in (0..DIMENSION).step_by(LANES * SUMS) {
                for (n, sum) in sums.iter_mut().enumerate() {
                    let at = at + n * LANES;
                    // SAFETY: `at + LANES` is at most DIMENSION, the length of both arrays; `loadu` needs no alignment.
                    let (a, b) =
                        unsafe { (_mm512_loadu_ps(row.0.as_ptr().add(at)), _mm512_loadu_ps(query.0.as_ptr().add(at))) };
                    *sum = _mm512_fmadd_ps(a, b, *sum);
                }
            }
            *score =
                _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn products_avx2(codes: &[Code], query: &QueryCode, products: &mut [i32]) {
        const LANES: usize = 16;
        const { assert!(DIMENSION.is_multiple_of(2 * LANES)) };
        for (code, product) in codes.iter().zip(products) {
            let mut sums = [_mm256_setzero_si256(); 2];
            for at in (0..DIMENSION).step_by(2 * LANES) {
                for (n, sum) in sums.iter_mut().enumerate() {
                    let at = at + n * LANES;
                    // SAFETY: `at + LANES` is at most DIMENSION, the length of both arrays; `loadu` needs no alignment.
                    let (a, b) = unsafe {
                        (
                            _mm_loadu_si128(code.0.as_ptr().add(at).cast()),
                            _mm256_loadu_si256(query.0.as_ptr().add(at).cast()),
                        )
                    };
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_cvtepi8_epi16(a), b));
                }
            }
            let sum = _mm256_add_epi32(sums[0], sums[1]);
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
            *product = _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum)));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn products_avx512(codes: &[Code], query: &QueryCode, products: &mut [i32]) {
        const LANES: usize = 32;
        const { assert!(DIMENSION.is_multiple_of(2 * LANES)) };
        for (code, product) in codes.iter().zip(products) {
            let mut sums = [_mm512_setzero_si512(); 2];
            for at in (0..DIMENSION).step_by(2 * LANES) {
                for (n, sum) in sums.iter_mut().enumerate() {
                    let at = at + n * LANES;
                    // SAFETY: `at + LANES` is at most DIMENSION, the length of both arrays; `loadu` needs no alignment.
                    let (a, b) = unsafe {
                        (
                            _mm256_loadu_si256(code.0.as_ptr().add(at).cast()),
                            _mm512_loadu_si512(query.0.as_ptr().add(at).cast()),
                        )
                    };
                    *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(_mm512_cvtepi8_epi16(a), b));
                }
            }
            *product = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(seed: u32) -> Vector {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let numbers: Vec<f32> = (0..DIMENSION)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        Vector::new(&numbers).expect("finite")
    }

    #[test]
    fn every_kernel_agrees_with_plain_arithmetic() {
        let (rows, query): (Vec<_>, _) = ((0..67).map(vector).collect(), vector(1000));
        for kernel in Kernel::available() {
            let mut scores = vec![f32::NAN; rows.len()];
            kernel.dots(&rows, &query, &mut scores);
            for (row, score) in rows.iter().zip(&scores) {
                let exact: f64 = row.0.iter().zip(&query.0).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!((exact - f64::from(*score)).abs() < 1e-3, "{}: {score}, exactly {exact}", kernel.name());
                assert_eq!(kernel.dot(row, &query).to_bits(), score.to_bits());
            }
        }
    }

    #[test]
    fn every_kernel_multiplies_codes_exactly_also_where_they_are_largest() {
        let largest = (Code([-127; DIMENSION]), QueryCode([i16::MAX; DIMENSION]));
        let mixed = (
            Code(std::array::from_fn(|n| (n as i32 * 37 % 255 - 127) as i8)),
            QueryCode(std::array::from_fn(|n| (n as i32 * 7919 % 65535 - 32767) as i16)),
        );
        for kernel in Kernel::available() {
            for (code, query) in [&largest, &mixed] {
                let exact: i64 = code.0.iter().zip(&query.0).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum();
                let mut products = [0; 3];
                kernel.products(&[code.clone(), Code([0; DIMENSION]), code.clone()], query, &mut products);
                assert_eq!(products.map(i64::from), [exact, 0, exact], "{}", kernel.name());
            }
        }
    }

    #[test]
    fn vectors_of_another_length_or_with_nan_are_refused() {
        assert!(Vector::new(&[0.0; DIMENSION - 1]).is_none());
        for bad in [f32::NAN, f32::INFINITY] {
            let mut numbers = [0.0; DIMENSION];
            numbers[DIMENSION - 1] = bad;
            assert!(Vector::new(&numbers).is_none());
        }
    }
}
