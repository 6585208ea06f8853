//! The methods that a client handles, as announced in its Hello: it is called for no other.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

/// Longest list of methods that is announced, in bytes of its text: some hundred names. Of a longer one nothing is
/// known, and the client answers for itself.
pub(crate) const METHODS_BYTES_MAX: usize = 4096;

/// The methods that a client handles: `Path.method`, with commas between. A clone is a counter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Methods(Arc<str>);

impl Methods {
    /// The text that announces these; `None` if there are too many, or a name cannot be told from two.
    pub(crate) fn announce(routes: &[(String, String)]) -> Option<String> {
        if routes.iter().any(|(path, method)| path.contains(',') || method.contains(',')) {
            return None;
        }
        let names: Vec<String> = routes.iter().map(|(path, method)| format!("{path}.{method}")).collect();
        Some(names.join(",")).filter(|text| text.len() <= METHODS_BYTES_MAX)
    }

    pub(crate) fn contains(&self, service_path: &str, service_method: &str) -> bool {
        let is_it = |name: &str| {
            let rest = name.strip_prefix(service_path).and_then(|rest| rest.strip_prefix('.'));
            rest == Some(service_method)
        };
        self.0.split(',').any(is_it)
    }

    /// As another node has kept them.
    #[cfg(feature = "cluster")]
    pub(crate) fn of_text(text: String) -> Self {
        Self(text.into())
    }

    /// As they were announced.
    #[cfg(feature = "cluster")]
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }
}

/// The lists that clients announced last, so that the clients of one program share one.
#[derive(Debug, Default)]
pub(crate) struct AnnouncedLists {
    recent: Mutex<VecDeque<Methods>>,
}

impl AnnouncedLists {
    /// Programs whose clients share their list; with the longest lists 64 KiB a server.
    const KEPT: usize = 16;

    /// What a client announces; `None`: nothing, or more than is listened to.
    pub(super) fn take(&self, text: Option<&str>) -> Option<Methods> {
        let text = text.filter(|text| text.len() <= METHODS_BYTES_MAX)?;
        let mut recent = self.recent.lock();
        if let Some(at) = recent.iter().position(|known| *known.0 == *text) {
            recent.swap(0, at);
        } else {
            recent.truncate(Self::KEPT - 1);
            recent.push_front(Methods(text.into()));
        }
        recent.front().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(names: &[(&str, &str)]) -> Vec<(String, String)> {
        names.iter().map(|(path, method)| ((*path).to_owned(), (*method).to_owned())).collect()
    }

    #[test]
    fn what_is_announced_is_what_is_found() {
        let text = Methods::announce(&routes(&[("Customer", "Cancel"), ("a.b", "c")])).expect("short");
        assert_eq!(text, "Customer.Cancel,a.b.c");
        let methods = AnnouncedLists::default().take(Some(&text)).expect("short");
        assert_eq!(methods.names(), ["Customer.Cancel", "a.b.c"]);
        assert!(methods.contains("Customer", "Cancel") && methods.contains("a.b", "c"));
        for (path, method) in [("Customer", "Cance"), ("Custome", "r.Cancel"), ("", ""), ("Customer", "Cancel,a.b.c")] {
            assert!(!methods.contains(path, method), "{path} {method}");
        }
    }

    /// To handle nothing is worth telling: it is not the same as telling nothing.
    #[test]
    fn an_empty_list_is_a_list() {
        assert_eq!(Methods::announce(&[]).as_deref(), Some(""));
        let none = AnnouncedLists::default().take(Some("")).expect("it was said");
        assert!(none.names().is_empty() && !none.contains("a", "b"));
        assert_eq!(AnnouncedLists::default().take(None), None);
    }

    #[test]
    fn what_is_too_long_or_unclear_is_not_announced() {
        let many: Vec<_> = (0..1000).map(|n| ("Customer".to_owned(), format!("method_{n}"))).collect();
        assert_eq!(Methods::announce(&many), None);
        assert_eq!(Methods::announce(&routes(&[("a", "b,c.d")])), None);
        let lists = AnnouncedLists::default();
        assert!(lists.take(Some(&"x".repeat(METHODS_BYTES_MAX))).is_some());
        assert_eq!(lists.take(Some(&"x".repeat(METHODS_BYTES_MAX + 1))), None);
    }

    #[test]
    fn clients_of_one_program_share_their_list() {
        let lists = AnnouncedLists::default();
        let first = lists.take(Some("A.b")).expect("short");
        for n in 0..AnnouncedLists::KEPT - 1 {
            lists.take(Some(&format!("A.{n}")));
        }
        assert!(Arc::ptr_eq(&first.0, &lists.take(Some("A.b")).expect("short").0));
        (0..100).for_each(|n| drop(lists.take(Some(&format!("B.{n}")))));
        assert_eq!(lists.recent.lock().len(), AnnouncedLists::KEPT);
    }
}
