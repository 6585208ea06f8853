//! Values that travel with a request within one process, found by their types.

use std::{
    any::{Any, TypeId, type_name},
    fmt,
};

/// Values of any types, one of each: what an auth hook or a layer leaves for those behind it. Nothing of it goes on the
/// wire.
///
/// ```
/// use bothways::Extensions;
///
/// #[derive(Debug, PartialEq)]
/// struct Tenant(u32);
///
/// let mut extensions = Extensions::new();
/// extensions.insert(Tenant(7));
/// assert_eq!(extensions.get::<Tenant>(), Some(&Tenant(7)));
/// assert_eq!(extensions.remove::<Tenant>(), Some(Tenant(7)));
/// assert!(extensions.get::<Tenant>().is_none());
/// ```
#[derive(Default)]
pub struct Extensions {
    /// Few: looked through from the beginning. Nothing is on the heap before there is one.
    values: Vec<Value>,
}

struct Value {
    id: TypeId,
    name: &'static str,
    value: Box<dyn Any + Send + Sync>,
}

impl Extensions {
    /// No values.
    pub const fn new() -> Self {
        Self { values: Vec::new() }
    }

    /// Keeps a value, and returns the one of its type that was there before.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: T) -> Option<T> {
        let before = self.remove();
        self.values.push(Value { id: TypeId::of::<T>(), name: type_name::<T>(), value: Box::new(value) });
        before
    }

    /// The value of a type.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.values.iter().find(|value| value.id == TypeId::of::<T>())?.value.downcast_ref()
    }

    /// The value of a type, to be changed.
    pub fn get_mut<T: Send + Sync + 'static>(&mut self) -> Option<&mut T> {
        self.values.iter_mut().find(|value| value.id == TypeId::of::<T>())?.value.downcast_mut()
    }

    /// Takes the value of a type out.
    pub fn remove<T: Send + Sync + 'static>(&mut self) -> Option<T> {
        let at = self.values.iter().position(|value| value.id == TypeId::of::<T>())?;
        let value = self.values.swap_remove(at).value.downcast().ok()?;
        Some(*value)
    }

    /// True if there is no value.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Keeps all values of `other` too, in place of those of the same types.
    pub(crate) fn extend(&mut self, other: Self) {
        self.values.retain(|value| !other.values.iter().any(|new| new.id == value.id));
        self.values.extend(other.values);
    }
}

/// The types; the values may be secrets.
impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.iter().map(|value| value.name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_value_of_each_type() {
        let mut extensions = Extensions::new();
        assert!(extensions.is_empty() && extensions.get::<u8>().is_none() && extensions.remove::<u8>().is_none());
        assert_eq!((extensions.insert(1_u8), extensions.insert(2_u8), extensions.insert(3_u16)), (None, Some(1), None));
        *extensions.get_mut::<u8>().expect("it is there") += 5;
        assert_eq!((extensions.get::<u8>(), extensions.get::<u16>()), (Some(&7), Some(&3)));

        let mut other = Extensions::new();
        other.insert(9_u16);
        other.insert("text");
        extensions.extend(other);
        assert_eq!((extensions.get::<u8>(), extensions.get::<u16>()), (Some(&7), Some(&9)));
        assert_eq!(extensions.remove::<&str>(), Some("text"));
        assert_eq!(extensions.remove::<&str>(), None);
    }

    #[test]
    fn values_are_not_shown() {
        let mut extensions = Extensions::new();
        extensions.insert("secret");
        assert_eq!(format!("{extensions:?}"), "{\"&str\"}");
    }
}
