//! How many records to ask a store for at a time. Its pages are counted, and a record may have one byte or 256 KiB; but some
//! servers look at every key of what is left of a range for each page (etcd does), so that many small pages take the square
//! of their number.

/// While nothing is known of the records' size.
pub(crate) const FIRST_PAGE: usize = 500;

const PAGE_BYTES: usize = 4 << 20;
const LARGE_PAGE: usize = 20_000;

/// After `records` of so many bytes together: as many as have four MiB, and not without bounds.
pub(crate) fn next_page(records: usize, bytes: usize) -> usize {
    let fit = PAGE_BYTES.saturating_mul(records) / bytes.max(1);
    fit.clamp(FIRST_PAGE, LARGE_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_small_records_are_large_and_of_large_ones_small() {
        assert_eq!(next_page(500, 500 * 700), 5991);
        assert_eq!(next_page(500, 500 * (256 << 10)), FIRST_PAGE);
        assert_eq!(next_page(500, 0), LARGE_PAGE);
        assert_eq!(next_page(0, 0), FIRST_PAGE);
    }
}
