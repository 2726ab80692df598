//! Pages of lists (AIP-158).

use tonic::Status;

use crate::status;

const DEFAULT_SIZE: usize = 100;
const GREATEST_SIZE: usize = 1000;

/// The part of `all` that a page request asks for, and the token of the next page. A token is the number of the first item.
pub(crate) fn page<T>(all: Vec<T>, size: i32, token: &str) -> Result<(Vec<T>, String), Status> {
    let size = match usize::try_from(size) {
        Ok(0) => DEFAULT_SIZE,
        Ok(n) => n.min(GREATEST_SIZE),
        Err(_) => return Err(status::bad_field(&status::BadField::new("page_size", "it must not be negative"))),
    };
    let first = match token {
        "" => 0,
        text => text.parse::<usize>().map_err(|_| status::page(format!("'{text}' is no token of a page")))?,
    };
    let n = all.len();
    let items: Vec<T> = all.into_iter().skip(first).take(size).collect();
    let next = first.saturating_add(items.len());
    Ok((items, if next < n { next.to_string() } else { String::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_give_everything_once() {
        let all: Vec<u32> = (0..250).collect();
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let (items, next) = page(all.clone(), 0, &token).unwrap();
            seen.extend(items);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, all);
        assert_eq!(page(all.clone(), 5000, "").unwrap().0.len(), 250);
        assert!(page(all.clone(), -1, "").is_err() && page(all.clone(), 1, "x").is_err());
        assert_eq!(page(all, 1, "999").unwrap(), (vec![], String::new()));
    }
}
