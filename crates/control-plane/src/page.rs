//! Paging: a marker is the key of the last item of the page before, in base64.

use aws_model::ApiError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Lambda's page size where the request names none, and its cap for most lists.
pub(crate) const PAGE: usize = 50;

/// The items after `marker`, at most `max_items` and [`PAGE`], and the marker of the next page if there is one.
/// `items` come in the order of their keys.
pub(crate) fn page<T>(
    items: impl IntoIterator<Item = (String, T)>,
    marker: Option<&str>,
    max_items: Option<i32>,
) -> Result<(Vec<T>, Option<String>), ApiError> {
    page_of(items, marker, max_items, PAGE)
}

/// Like [`page()`], with a cap of its own.
pub(crate) fn page_of<T>(
    items: impl IntoIterator<Item = (String, T)>,
    marker: Option<&str>,
    max_items: Option<i32>,
    cap: usize,
) -> Result<(Vec<T>, Option<String>), ApiError> {
    let after = self::marker(marker)?;
    let size = max_items.and_then(|max| usize::try_from(max).ok()).filter(|max| *max > 0).unwrap_or(cap).min(cap);
    let mut rest = items.into_iter().filter(|(key, _)| after.as_ref().is_none_or(|after| key > after));
    let mut last = None;
    let mut taken = Vec::new();
    for (key, item) in rest.by_ref().take(size) {
        last = Some(key);
        taken.push(item);
    }
    let next = last.filter(|_| rest.next().is_some()).map(|key| STANDARD.encode(key));
    Ok((taken, next))
}

/// The key of the last item of the page before.
pub(crate) fn marker(marker: Option<&str>) -> Result<Option<String>, ApiError> {
    marker.filter(|marker| !marker.is_empty()).map(decode).transpose()
}

fn decode(marker: &str) -> Result<String, ApiError> {
    let bytes = STANDARD.decode(marker).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| ApiError::invalid_parameter_value("Invalid pagination marker."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_everything_once() {
        let items: Vec<(String, u32)> = (0..120).map(|n| (format!("{n:03}"), n)).collect();
        for size in [None, Some(1), Some(7), Some(50), Some(10_000)] {
            let mut seen = Vec::new();
            let mut marker = None;
            loop {
                let (page, next) = page(items.clone(), marker.as_deref(), size).unwrap();
                assert!(!page.is_empty() && page.len() <= PAGE);
                seen.extend(page);
                marker = next;
                if marker.is_none() {
                    break;
                }
            }
            assert_eq!(seen, (0..120).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn a_marker_of_a_deleted_item_still_works() {
        let items = [("a".to_owned(), 1), ("c".to_owned(), 3)];
        assert_eq!(page(items, Some(&STANDARD.encode("b")), None).unwrap(), (vec![3], None));
    }

    #[test]
    fn a_foreign_marker_is_refused() {
        assert_eq!(page([("a".to_owned(), 1)], Some("%"), None).unwrap_err().status, 400);
    }
}
