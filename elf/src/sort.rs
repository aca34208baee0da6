//! Sorting in little code.
//!
//! What is sorted here (symbols, relocations, variables by address) nearly
//! always is in order already, so checking comes first and the sort behind it
//! need not be the fastest. The standard library's takes 5 KiB of code for
//! each type and order, this one 300 bytes.
//!
//! Public for the crate above alone.

/// Sorts `items` so that none stands behind one that it comes `before`. Takes
/// O(n log n) comparisons at worst, O(n) if nothing is to be done; equal items
/// may change places.
pub fn sort<T>(items: &mut [T], before: impl Fn(&T, &T) -> bool) {
    if items.is_sorted_by(|a, b| !before(b, a)) {
        return;
    }
    // Heapsort: the largest is kept in front and goes to the end.
    for root in (0..items.len() / 2).rev() {
        sift_down(items, root, &before);
    }
    for end in (1..items.len()).rev() {
        items.swap(0, end);
        if let Some(heap) = items.get_mut(..end) {
            sift_down(heap, 0, &before);
        }
    }
}

/// Moves the item at `root` down until no child of it is larger.
fn sift_down<T>(heap: &mut [T], mut root: usize, before: &impl Fn(&T, &T) -> bool) {
    loop {
        let mut largest = root;
        for child in [2 * root + 1, 2 * root + 2] {
            if let (Some(a), Some(b)) = (heap.get(largest), heap.get(child))
                && before(a, b)
            {
                largest = child;
            }
        }
        if largest == root {
            return;
        }
        heap.swap(root, largest);
        root = largest;
    }
}

#[cfg(test)]
mod tests {
    use super::sort;

    #[test]
    fn sorts_like_the_standard_library() {
        let mut state = 1_u32;
        for len in 0..200 {
            let mut items: Vec<u32> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Few values, so that equal ones occur.
                    (state >> 16) % 50
                })
                .collect();
            let mut expected = items.clone();
            expected.sort_unstable();
            sort(&mut items, |a, b| a < b);
            assert_eq!(items, expected);
            // Sorted, and the other way round.
            sort(&mut items, |a, b| a < b);
            assert_eq!(items, expected);
            expected.reverse();
            sort(&mut items, |a, b| a > b);
            assert_eq!(items, expected);
        }
    }
}
