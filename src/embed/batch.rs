//! Packs texts of like length into calls of the model and singles out the text that makes a call fail. No I/O.

/// What a call costs besides its tokens, in tokens. A call less is worth this much padding.
const CALL_TOKENS: usize = 16;

/// Orders texts by length, longest first, and packs neighbours into calls of at most `budget` tokens, padding
/// included, so that padding and calls together cost least; a longer text goes alone. Gives the texts' indices.
///
/// Longest first, so that where calls run side by side the last ones to end are short.
pub fn pack(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(lengths[*index]), *index));
    // For the first n texts: the least cost, and where the last of its calls begins.
    let mut best = vec![(0, 0)];
    for end in 1..=order.len() {
        let mut least = (usize::MAX, end - 1);
        for start in (0..end).rev() {
            let padded = lengths[order[start]] * (end - start);
            if padded > budget && end - start > 1 {
                // An earlier start is a longer and wider call.
                break;
            }
            least = least.min((best[start].0 + padded + CALL_TOKENS, start));
        }
        best.push(least);
    }
    let mut calls = vec![];
    let mut end = order.len();
    while end > 0 {
        let start = best[end].1;
        calls.push(order[start..end].to_vec());
        end = start;
    }
    calls.reverse();
    calls
}

/// Runs `call` on all items; where it fails, on each half, down to single items, which keep their error.
/// Results are in the order of the items. One bad item among n costs about 2 log2(n) more calls.
pub fn bisect<I, T, E>(items: &[I], call: &mut impl FnMut(&[I]) -> Result<Vec<T>, E>) -> Vec<Result<T, E>> {
    if items.is_empty() {
        return vec![];
    }
    match call(items) {
        Ok(results) => results.into_iter().map(Ok).collect(),
        Err(fault) if items.len() == 1 => vec![Err(fault)],
        Err(_) => {
            let (left, right) = items.split_at(items.len() / 2);
            let mut results = bisect(left, call);
            results.extend(bisect(right, call));
            results
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_to_the_budget_and_takes_each_text_once() {
        let check = |lengths: &[usize], budget: usize, expected: &[&[usize]]| {
            assert_eq!(pack(lengths, budget), expected, "{lengths:?}");
        };
        check(&[], 100, &[]);
        check(&[10, 40, 20, 41], 100, &[&[3, 1], &[2, 0]]);
        check(&[41, 40, 6, 5, 4], 200, &[&[0, 1], &[2, 3, 4]]);
        check(&[9, 9, 9], 0, &[&[0], &[1], &[2]]);
        check(&[300, 5], 100, &[&[0], &[1]]);
        check(&[50, 50, 50], 100, &[&[0], &[1, 2]]);
    }

    #[test]
    fn padding_of_mixed_lengths_is_below_five_percent() {
        let lengths: Vec<usize> = (0..128).map(|index| 8 + (index * 37) % 190).collect();
        let padded: usize = pack(&lengths, 1024).iter().map(|call| call.len() * lengths[call[0]]).sum();
        let real: usize = lengths.iter().sum();
        assert!((padded - real) * 20 < padded, "{padded} for {real}");
    }

    #[test]
    fn bisection_singles_out_the_bad_ones() {
        let mut calls = 0;
        let results = bisect(&[1, 2, 3, 4, 5, 6, 7, 8], &mut |items: &[i32]| {
            calls += 1;
            if items.contains(&3) { Err("bad") } else { Ok(items.iter().map(|item| item * 10).collect()) }
        });
        assert_eq!(results, [Ok(10), Ok(20), Err("bad"), Ok(40), Ok(50), Ok(60), Ok(70), Ok(80)]);
        assert_eq!(calls, 7);
        assert!(bisect(&[], &mut |_: &[i32]| Err::<Vec<i32>, _>("bad")).is_empty());
    }
}
