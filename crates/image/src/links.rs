//! Symbolic links of a tree that is not on a disk yet: do they stay inside it?

use std::collections::BTreeMap;

/// As many links as the kernel follows in one lookup (`path_resolution(7)`); what needs more cannot be opened at all.
const MAX_FOLLOWED: usize = 40;

/// Whether following `target`, the content of a link at `link`, ever leaves the tree.
///
/// Looking at `target` alone is not enough: after a step through another link, `..` means the parent of where that link
/// led. So the lookup is replayed as the kernel would do it, over all `links` of the tree (path to target, both
/// relative and with `/` between components). Components that do not exist are taken for directories.
pub(crate) fn leaves_tree(link: &str, target: &str, links: &BTreeMap<String, String>) -> bool {
    let mut here: Vec<&str> = link.split('/').collect();
    here.pop();
    let mut rest: Vec<&str> = target.split('/').rev().collect();
    let mut followed = 0;
    if target.starts_with('/') {
        return true;
    }
    while let Some(component) = rest.pop() {
        match component {
            "" | "." => {}
            ".." => {
                if here.pop().is_none() {
                    return true;
                }
            }
            name => {
                here.push(name);
                let Some(next) = links.get(&here.join("/")) else { continue };
                followed += 1;
                if next.starts_with('/') {
                    return true;
                }
                if followed > MAX_FOLLOWED {
                    return false;
                }
                here.pop();
                rest.extend(next.split('/').rev());
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(path, target)| ((*path).to_owned(), (*target).to_owned())).collect()
    }

    #[test]
    fn targets_are_judged_from_the_directory_of_the_link() {
        let none = BTreeMap::new();
        assert!(!leaves_tree("a", "b", &none));
        assert!(!leaves_tree("lib/a", "../b", &none));
        assert!(!leaves_tree("lib/a", "./x/../../b", &none));
        assert!(!leaves_tree("lib/a", "..", &none));
        assert!(leaves_tree("a", "..", &none));
        assert!(leaves_tree("lib/a", "../../b", &none));
        assert!(leaves_tree("a", "/etc/passwd", &none));
    }

    #[test]
    fn links_on_the_way_count() {
        let tree = links(&[("p/q/up", "../.."), ("l", "p/q/up/..")]);
        assert!(!leaves_tree("p/q/up", "../..", &tree));
        assert!(leaves_tree("l", "p/q/up/..", &tree));
        let absolute = links(&[("a", "/etc"), ("b", "a/passwd")]);
        assert!(leaves_tree("b", "a/passwd", &absolute));
    }

    #[test]
    fn a_loop_ends() {
        let tree = links(&[("a", "b"), ("b", "a")]);
        assert!(!leaves_tree("a", "b", &tree));
        let growing = links(&[("a", "a/a/a/a")]);
        assert!(!leaves_tree("a", "a/a/a/a", &growing));
    }
}
