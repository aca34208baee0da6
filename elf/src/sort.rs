//! Sorting in little code.
//!
//! What is sorted here (symbols, relocations, variables by address) nearly
//! always is in order already, so checking comes first and the sort behind it
//! need not be the fastest. The standard library's takes 5 KiB of code for
//! each type and order, this one 200 bytes.
//!
//! Public for the crate above alone.

/// Sorts `items` so that none stands behind one that it comes `before`. Takes
/// O(n log n) comparisons at worst, O(n) if nothing is to be done; equal items
/// may change places.
pub fn sort<T>(items: &mut [T], before: impl Fn(&T, &T) -> bool) {
    let len = items.len();
    heap_sort(len, &mut Items { items, before });
}

/// What sorting does to items of any type, by their places.
trait Places {
    fn before(&self, a: usize, b: usize) -> bool;
    fn swap(&mut self, a: usize, b: usize);
}

struct Items<'a, T, F> {
    items: &'a mut [T],
    before: F,
}

impl<T, F: Fn(&T, &T) -> bool> Places for Items<'_, T, F> {
    fn before(&self, a: usize, b: usize) -> bool {
        match (self.items.get(a), self.items.get(b)) {
            (Some(a), Some(b)) => (self.before)(a, b),
            _ => false,
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        if let Ok([a, b]) = self.items.get_disjoint_mut([a, b]) {
            std::mem::swap(a, b);
        }
    }
}

fn heap_sort(len: usize, items: &mut dyn Places) {
    if (1..len).all(|at| !items.before(at, at - 1)) {
        return;
    }
    // The largest is kept in front and goes to the end.
    for root in (0..len / 2).rev() {
        sift_down(items, root, len);
    }
    for end in (1..len).rev() {
        items.swap(0, end);
        sift_down(items, 0, end);
    }
}

/// Moves the item at `root` down until no child of it is larger.
fn sift_down(items: &mut dyn Places, mut root: usize, end: usize) {
    loop {
        let mut largest = root;
        for child in [2 * root + 1, 2 * root + 2] {
            if child < end && items.before(largest, child) {
                largest = child;
            }
        }
        if largest == root {
            return;
        }
        items.swap(root, largest);
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
