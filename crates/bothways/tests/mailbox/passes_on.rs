//! For stores that stand before another one.

/// These calls go to `self.store` as they are.
macro_rules! passes_on {
    (read) => {
        fn read(
            &self,
            from: ::bothways::store::Log,
            after: u64,
            max: usize,
        ) -> ::bothways::store::BoxFuture<Result<::bothways::store::Page, ::bothways::store::EngineDown>> {
            self.store.read(from, after, max)
        }
    };
    (cursor) => {
        fn cursor(
            &self,
            of: ::bothways::store::Log,
            reader: String,
        ) -> ::bothways::store::BoxFuture<Result<Option<::bothways::store::Place>, ::bothways::store::EngineDown>> {
            self.store.cursor(of, reader)
        }
    };
    (cursors) => {
        fn cursors(
            &self,
            of: ::bothways::store::Log,
        ) -> ::bothways::store::BoxFuture<Result<Vec<(String, ::bothways::store::Place)>, ::bothways::store::EngineDown>>
        {
            self.store.cursors(of)
        }
    };
    (advance) => {
        fn advance(
            &self,
            of: ::bothways::store::Log,
            reader: String,
            to: ::bothways::store::Place,
            keep: ::std::time::Duration,
        ) -> ::bothways::store::BoxFuture<Result<::bothways::store::Place, ::bothways::store::EngineDown>> {
            self.store.advance(of, reader, to, keep)
        }
    };
    (trim) => {
        fn trim(
            &self,
            log: ::bothways::store::Log,
            upto: ::bothways::store::Place,
        ) -> ::bothways::store::BoxFuture<Result<(), ::bothways::store::EngineDown>> {
            self.store.trim(log, upto)
        }
    };
    (remove) => {
        fn remove(
            &self,
            from: ::bothways::store::Log,
            place: ::bothways::store::Place,
        ) -> ::bothways::store::BoxFuture<Result<bool, ::bothways::store::EngineDown>> {
            self.store.remove(from, place)
        }
    };
    (list) => {
        fn list(
            &self,
            after: ::bothways::store::Log,
            max: usize,
        ) -> ::bothways::store::BoxFuture<Result<Vec<(String, usize)>, ::bothways::store::EngineDown>> {
            self.store.list(after, max)
        }
    };
    ($($call:ident),+) => {
        $(passes_on!($call);)+
    };
}
