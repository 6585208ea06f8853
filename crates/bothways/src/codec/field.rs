//! The common part of the modules for serde's `with`: a form on the wire that is not the type's own, also within an
//! `Option`, a `Vec` or a map, and a newtype for values that are not fields.

/// Gives a trait of the shape `write`, `read` the containers of values that have it.
macro_rules! within_containers {
    ($trait:ident) => {
        impl<T: $trait> $trait for Option<T> {
            fn write<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serde::Serialize::serialize(&self.as_ref().map(Written), serializer)
            }

            fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let read: Option<Read<T>> = serde::Deserialize::deserialize(deserializer)?;
                Ok(read.map(|read| read.0))
            }
        }

        impl<T: $trait> $trait for Vec<T> {
            fn write<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.iter().map(Written))
            }

            fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let read: Vec<Read<T>> = serde::Deserialize::deserialize(deserializer)?;
                Ok(read.into_iter().map(|read| read.0).collect())
            }
        }

        impl<K, T, H> $trait for std::collections::HashMap<K, T, H>
        where
            K: serde::Serialize + serde::de::DeserializeOwned + Eq + std::hash::Hash,
            T: $trait,
            H: std::hash::BuildHasher + Default,
        {
            fn write<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.iter().map(|(key, value)| (key, Written(value))))
            }

            fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let read: std::collections::HashMap<K, Read<T>> = serde::Deserialize::deserialize(deserializer)?;
                Ok(read.into_iter().map(|(key, read)| (key, read.0)).collect())
            }
        }

        impl<K, T> $trait for std::collections::BTreeMap<K, T>
        where
            K: serde::Serialize + serde::de::DeserializeOwned + Ord,
            T: $trait,
        {
            fn write<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.iter().map(|(key, value)| (key, Written(value))))
            }

            fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let read: std::collections::BTreeMap<K, Read<T>> = serde::Deserialize::deserialize(deserializer)?;
                Ok(read.into_iter().map(|(key, read)| (key, read.0)).collect())
            }
        }

        struct Written<'a, T>(&'a T);

        impl<T: $trait> serde::Serialize for Written<'_, T> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.write(serializer)
            }
        }

        struct Read<T>(T);

        impl<'de, T: $trait> serde::Deserialize<'de> for Read<T> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                T::read(deserializer).map(Self)
            }
        }
    };
}

/// Makes a newtype of what has a trait of the shape `write`, `read`.
macro_rules! newtype {
    ($(#[$attribute:meta])* $name:ident, $trait:ident, $default:ty) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name<T = $default>(pub T);

        impl<T: $trait> serde::Serialize for $name<T> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.write(serializer)
            }
        }

        impl<'de, T: $trait> serde::Deserialize<'de> for $name<T> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                T::read(deserializer).map(Self)
            }
        }

        impl<T> std::ops::Deref for $name<T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.0
            }
        }

        impl<T> From<T> for $name<T> {
            fn from(value: T) -> Self {
                Self(value)
            }
        }
    };
}

pub(super) use {newtype, within_containers};
