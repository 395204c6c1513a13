//! Vectors in eight bits a number, and how far a score of codes can be from the exact one. No I/O, no state.
//!
//! A vector v is s·c + r: a scale, whole numbers, and the rest that these leave; a query q likewise. Then
//! v·q = s_v·s_q·(c_v·c_q) + r_v·q + s_v·c_v·r_q, and by the Cauchy-Schwarz inequality the last two terms are at most
//! |r_v|·|q| + |s_v·c_v|·|r_q|. So the product of the codes gives a bound that the exact score never passes: a search that
//! leaves out whatever has its bound below the last result's score finds exactly what a scan of all vectors finds.

use super::scan::{DIMENSION, Vector};

/// Largest number of a vector's code.
const CODE_MAX: f64 = i8::MAX as f64;
/// Largest number of a query's code. A product of codes is at most 384 · 127 · 32,767, which an i32 holds.
const QUERY_MAX: f64 = i16::MAX as f64;
/// What rounding can add to a score of f32, as a share of the product of the norms: 384 sums of 2^-24 each, and as much again.
const ROUNDING: f64 = 4.6e-5;

/// A vector's whole numbers.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Code(pub(super) [i8; DIMENSION]);

/// A query's whole numbers: finer, for there is only one.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct QueryCode(pub(super) [i16; DIMENSION]);

impl Code {
    /// All zero.
    pub const ZERO: Code = Code([0; DIMENSION]);
}

/// What is needed to turn a product of codes into a bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bound {
    scale: f32,
    /// Of the rest.
    rest: f32,
    /// Of the coded part, and of the rest where rounding is concerned.
    norm: f32,
}

/// The bounds of so many codes, number beside number: a scan works them out several at a time.
#[derive(Debug)]
pub struct Bounds<const COUNT: usize> {
    scales: [f32; COUNT],
    rests: [f32; COUNT],
    norms: [f32; COUNT],
}

impl<const COUNT: usize> Bounds<COUNT> {
    /// Of codes that are all zero.
    pub const ZERO: Self = Bounds { scales: [0.0; COUNT], rests: [0.0; COUNT], norms: [0.0; COUNT] };

    /// The bound of the code in this place.
    pub fn set(&mut self, place: usize, bound: Bound) {
        (self.scales[place], self.rests[place], self.norms[place]) = (bound.scale, bound.rest, bound.norm);
    }
}

/// A vector with its code.
#[derive(Clone, Debug)]
pub struct Coded {
    /// The vector.
    pub vector: Vector,
    /// Its code.
    pub code: Code,
    /// How far the code is from it.
    pub bound: Bound,
}

impl Coded {
    /// Gives a vector its code.
    pub fn new(vector: Vector) -> Self {
        let mut code = Code::ZERO;
        let bound = quantise(vector.numbers(), CODE_MAX, |at, number| code.0[at] = number as i8);
        Coded { vector, code, bound }
    }
}

/// A query, to be compared with codes.
#[derive(Clone, Debug)]
pub struct Query {
    code: QueryCode,
    scale: f32,
    /// What a vector's rest counts for.
    rests: f32,
    /// What a vector's norm counts for.
    norms: f32,
}

impl Query {
    /// Gives a query its code.
    pub fn new(vector: &Vector) -> Self {
        let mut code = QueryCode([0; DIMENSION]);
        let Bound { scale, rest, norm } =
            quantise(vector.numbers(), QUERY_MAX, |at, number| code.0[at] = number as i16);
        Query { code, scale, rests: norm, norms: above(f64::from(rest) + ROUNDING * f64::from(norm)) }
    }

    /// The code.
    pub fn code(&self) -> &QueryCode {
        &self.code
    }

    /// What the exact score is at most of each code from this place on, where they have these products. Not a number where a norm
    /// is beyond f32.
    pub fn at_most<const COUNT: usize>(
        &self,
        bounds: &Bounds<COUNT>,
        from: usize,
        products: &[i32],
        limits: &mut [f32],
    ) {
        let part = from..from + products.len();
        let (scales, rests, norms) = (&bounds.scales[part.clone()], &bounds.rests[part.clone()], &bounds.norms[part]);
        let bounds = scales.iter().zip(rests).zip(norms);
        for ((limit, product), ((scale, rest), norm)) in limits.iter_mut().zip(products).zip(bounds) {
            *limit = *product as f32 * (scale * self.scale) + rest * self.rests + norm * self.norms;
        }
    }
}

/// Hands out the code, number by number; what it leaves is in the bound.
fn quantise(numbers: &[f32; DIMENSION], largest: f64, mut put: impl FnMut(usize, f64)) -> Bound {
    let peak = numbers.iter().fold(0.0_f32, |peak, number| peak.max(number.abs()));
    let scale = (f64::from(peak) / largest) as f32;
    let (mut rest, mut norm) = (0.0_f64, 0.0_f64);
    for (at, number) in numbers.iter().map(|number| f64::from(*number)).enumerate() {
        let coded = if scale > 0.0 { (number / f64::from(scale)).round().clamp(-largest, largest) } else { 0.0 };
        put(at, coded);
        let coded = coded * f64::from(scale);
        rest += (number - coded).powi(2);
        norm += coded.powi(2);
    }
    // The norm of the whole is at most the sum of both.
    let (rest, norm) = (rest.sqrt(), norm.sqrt());
    Bound { scale, rest: above(rest), norm: above(norm + rest) }
}

/// An f32 that is not below.
fn above(number: f64) -> f32 {
    (number * (1.0 + 1e-6)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::scan::Kernel;

    fn vectors(seed: u32, scale: f32) -> impl Iterator<Item = Vector> {
        let mut state = seed;
        std::iter::from_fn(move || {
            let numbers: Vec<f32> = (0..DIMENSION)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let number = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                    // Most are small and few are large, as a model's are.
                    number.powi(5) * scale
                })
                .collect();
            Vector::new(&numbers)
        })
    }

    /// In a place among others, whose products are others.
    fn limit(query: &Query, bound: Bound, product: i32) -> f32 {
        let mut bounds = Bounds::<9>::ZERO;
        bounds.set(7, bound);
        let mut limits = [0.0; 4];
        query.at_most(&bounds, 5, &[1, -1, product, 1], &mut limits);
        limits[2]
    }

    #[test]
    fn no_score_is_above_its_bound_and_no_bound_is_far_off() {
        let kernel = Kernel::detect();
        for (row_scale, query_scale) in [(1.0, 1.0), (1e-3, 1e3), (1e15, 1e-15), (1e-30, 1.0), (0.0, 1.0), (1.0, 0.0)] {
            for query in vectors(7, query_scale).take(20) {
                let asked = Query::new(&query);
                for row in vectors(11, row_scale).take(200).chain([query.clone()]) {
                    let coded = Coded::new(row);
                    let mut product = [0];
                    kernel.products(std::slice::from_ref(&coded.code), asked.code(), &mut product);
                    let (score, at_most) = (kernel.dot(&coded.vector, &query), limit(&asked, coded.bound, product[0]));
                    assert!(score <= at_most, "{score} is above {at_most}");
                    let norms = f64::from(coded.bound.norm) * f64::from(asked.rests);
                    assert!(f64::from(at_most - score) <= 0.03 * norms, "{at_most} for {score}, norms {norms}");
                }
            }
        }
    }

    #[test]
    fn what_is_beyond_f32_has_no_bound_that_would_leave_it_out() {
        let huge = Vector::new(&[f32::MAX; DIMENSION]).expect("finite");
        let at_most = limit(&Query::new(&huge), Coded::new(huge).bound, i32::MAX);
        assert!(at_most.is_nan() || at_most == f32::INFINITY, "{at_most}");
    }
}
