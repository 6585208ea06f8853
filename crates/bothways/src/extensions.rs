//! Values of the application beside a call or a request, found by their types.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    sync::Arc,
};

type Values = HashMap<TypeId, Arc<dyn Any + Send + Sync>>;

/// One value of each type: what an auth hook or a layer leaves for those after it. Nothing of it is sent. A clone
/// shares the values.
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
/// assert_eq!(extensions.get::<u32>(), None);
/// ```
#[derive(Clone, Default)]
pub struct Extensions {
    /// Most calls and requests have none.
    values: Option<Arc<Values>>,
}

impl Extensions {
    /// No values.
    pub const fn new() -> Self {
        Self { values: None }
    }

    /// Adds a value, in place of another one of its type.
    pub fn insert<T: Any + Send + Sync>(&mut self, value: T) {
        drop(self.replace(value));
    }

    /// As [`Self::insert`]. Returns the other one.
    pub(crate) fn replace<T: Any + Send + Sync>(&mut self, value: T) -> Option<Arc<dyn Any + Send + Sync>> {
        let values = self.values.get_or_insert_default();
        Arc::make_mut(values).insert(TypeId::of::<T>(), Arc::new(value))
    }

    /// The value of this type.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.values.as_ref()?.get(&TypeId::of::<T>())?.downcast_ref()
    }

    /// Adds all values of `other`, in place of those of the same types.
    pub(crate) fn extend(&mut self, other: Self) {
        let Some(new) = other.values else { return };
        match &mut self.values {
            None => self.values = Some(new),
            Some(values) => Arc::make_mut(values).extend(new.iter().map(|(id, value)| (*id, Arc::clone(value)))),
        }
    }
}

/// How many there are: the values may be secrets.
impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} extensions", self.values.as_ref().map_or(0, |values| values.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_value_of_each_type() {
        let mut extensions = Extensions::new();
        assert_eq!(extensions.get::<u8>(), None);
        extensions.insert(1_u8);
        extensions.insert(2_u8);
        extensions.insert(3_u16);
        let shared = extensions.clone();
        let mut other = Extensions::new();
        other.insert(9_u16);
        other.insert("secret");
        extensions.extend(other);
        extensions.extend(Extensions::new());
        assert_eq!((extensions.get::<u8>(), extensions.get::<u16>()), (Some(&2), Some(&9)));
        assert_eq!((extensions.get::<&str>(), shared.get::<u16>()), (Some(&"secret"), Some(&3)));
        let mut none = Extensions::new();
        none.extend(shared);
        assert_eq!(none.get::<u8>(), Some(&2));
        assert_eq!(format!("{extensions:?}"), "3 extensions");
    }
}
