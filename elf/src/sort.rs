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
    // Heapsort: the largest of the first `end` is kept in front and goes to
    // the end. One loop for both halves of it, so that its body is there once.
    let (mut root, mut end) = (items.len() / 2, items.len());
    while end > 1 {
        if root > 0 {
            root -= 1;
        } else {
            end -= 1;
            items.swap(0, end);
        }
        // Moves the item at `root` down until no child of it is larger.
        let mut parent = root;
        loop {
            let mut child = 2 * parent + 1;
            let Some([left, right]) = items.get(child..end).and_then(|c| c.first_chunk()) else {
                if child < end && before(&items[parent], &items[child]) {
                    items.swap(parent, child);
                }
                break;
            };
            if before(left, right) {
                child += 1;
            }
            if !before(&items[parent], &items[child]) {
                break;
            }
            items.swap(parent, child);
            parent = child;
        }
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
