//! The sessions of this node whose records are written, and when each is to be renewed. A session to which nothing
//! happens takes 16 bytes beside its number, and 16 more where it waits for its renewal.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    claim::Owned,
    engine::{NodeId, Revision},
    moves::Parcel,
    record::RENEW_AFTER,
};
use crate::session::SessionId;

/// A session of this node, with its image if it was given away.
pub(super) type OwnedHere = Owned<Option<Arc<Parcel>>>;

/// See [`OwnedHere`].
#[derive(Clone)]
pub(super) struct Owning {
    pub(super) owned: OwnedHere,
    /// Its record names a life of this node that is over.
    pub(super) is_stale: bool,
    /// Who asked for it last, and when.
    pub(super) asked: Option<(NodeId, Instant)>,
    /// A task waits for where it goes.
    pub(super) is_watched: bool,
    /// Where among the renewals it stands. What stands of it elsewhere is old.
    slot: u16,
}

impl Owning {
    pub(super) fn new(owned: OwnedHere, is_stale: bool) -> Self {
        Self { owned, is_stale, asked: None, is_watched: false, slot: 0 }
    }
}

/// What is kept of a session.
enum Kept {
    /// It is live, and nobody asks for it.
    Quiet {
        revision: Revision,
        last_try: u32,
        slot: u16,
        term: u8,
        is_stale: bool,
    },
    Busy(Box<Owning>),
}

impl Kept {
    fn of(owning: Owning) -> Self {
        let Owning { owned, is_stale, asked, is_watched, slot } = &owning;
        let is_quiet = owned.is_live() && owned.image.is_none() && !is_watched && asked.is_none();
        match (u32::try_from(owned.last_try()), u8::try_from(owned.term)) {
            (Ok(last_try), Ok(term)) if is_quiet => {
                Self::Quiet { revision: owned.revision, last_try, slot: *slot, term, is_stale: *is_stale }
            }
            _ => Self::Busy(Box::new(owning)),
        }
    }

    fn owning(&self) -> Owning {
        match self {
            &Self::Quiet { revision, last_try, slot, term, is_stale } => {
                let owned = Owned::new(term.into(), revision, last_try.into(), None);
                Owning { slot, ..Owning::new(owned, is_stale) }
            }
            Self::Busy(owning) => Owning::clone(owning),
        }
    }

    fn slot(&self) -> u16 {
        match self {
            Self::Quiet { slot, .. } => *slot,
            Self::Busy(owning) => owning.slot,
        }
    }
}

/// See the module.
pub(super) struct AllOwned {
    all: HashMap<SessionId, Kept>,
    /// Who is to be renewed in each second from `began` on. A second that is over grows no more.
    renewals: BTreeMap<u64, Vec<SessionId>>,
    /// How many stand there, those of former sessions among them.
    renewals_len: usize,
    began: Instant,
}

impl AllOwned {
    pub(super) fn new() -> Self {
        Self { all: HashMap::new(), renewals: BTreeMap::new(), renewals_len: 0, began: Instant::now() }
    }

    pub(super) fn insert(&mut self, id: SessionId, owning: Owning) {
        self.all.insert(id, Kept::of(owning));
    }

    pub(super) fn remove(&mut self, id: SessionId) -> Option<Owning> {
        let was = self.all.remove(&id).map(|kept| kept.owning());
        // Sessions that began and ended within half an hour would wait for a renewal that nobody needs.
        if self.renewals_len > 2 * self.all.len() + 4096 {
            self.forget_old_renewals();
        }
        was
    }

    pub(super) fn get(&self, id: SessionId) -> Option<Owning> {
        self.all.get(&id).map(Kept::owning)
    }

    /// What is changed is there when the answer is dropped.
    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<Changing<'_>> {
        let kept = self.all.get_mut(&id)?;
        Some(Changing { owning: Some(kept.owning()), kept })
    }

    pub(super) fn has(&self, id: SessionId) -> bool {
        self.all.contains_key(&id)
    }

    /// All records name a life that is over.
    pub(super) fn all_stale(&mut self) -> Vec<SessionId> {
        for kept in self.all.values_mut() {
            match kept {
                Kept::Quiet { is_stale, .. } => *is_stale = true,
                Kept::Busy(owning) => owning.is_stale = true,
            }
        }
        self.all.keys().copied().collect()
    }

    /// The record of a session that is here was written anew. Whether it had been given away, and stays now.
    pub(super) fn written(&mut self, id: SessionId, term: u64, revision: Revision) -> bool {
        let Some(mut owning) = self.get_mut(id) else {
            self.insert(id, Owning::new(Owned::new(term, revision, 0, None), false));
            return false;
        };
        let is_given = !owning.owned.is_live();
        if is_given && !owning.is_stale {
            // It was given away meanwhile: who has the image loses by this, and asks again.
            owning.owned.revision = revision;
            return false;
        }
        owning.owned.thawed(revision);
        owning.owned.image = None;
        (owning.is_stale, owning.is_watched) = (false, false);
        is_given
    }

    /// Its record was written now.
    pub(super) fn renew_later(&mut self, id: SessionId) {
        let Some(mut owning) = self.all.get(&id).map(Kept::owning) else { return };
        let second = self.second_of(Instant::now() + RENEW_AFTER);
        owning.slot = second as u16;
        self.all.insert(id, Kept::of(owning));

        let begins = !self.renewals.contains_key(&second);
        if begins && let Some(mut before) = self.renewals.last_entry() {
            before.get_mut().shrink_to_fit();
        }
        self.renewals.entry(second).or_default().push(id);
        self.renewals_len += 1;
    }

    /// Those whose renewal is due, once each.
    pub(super) fn take_renewals(&mut self, now: Instant) -> Vec<SessionId> {
        let mut taken = Vec::new();
        while let Some(first) = self.renewals.first_entry()
            && self.began + Duration::from_secs(*first.key()) <= now
        {
            let (second, ids) = first.remove_entry();
            self.renewals_len -= ids.len();
            taken.extend(ids.into_iter().filter(|id| is_at(&self.all, *id, second)));
        }
        taken
    }

    /// When the next renewal is due.
    pub(super) fn next_renewal(&self) -> Option<Instant> {
        self.renewals.keys().next().map(|second| self.began + Duration::from_secs(*second))
    }

    /// The first whole second that is not before this.
    fn second_of(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        since.as_secs() + u64::from(since.subsec_nanos() > 0)
    }

    fn forget_old_renewals(&mut self) {
        for (second, ids) in &mut self.renewals {
            ids.retain(|id| is_at(&self.all, *id, *second));
            ids.shrink_to_fit();
        }
        self.renewals.retain(|_, ids| !ids.is_empty());
        self.renewals_len = self.renewals.values().map(Vec::len).sum();
        self.all.shrink_to(2 * self.all.len());
    }
}

fn is_at(all: &HashMap<SessionId, Kept>, id: SessionId, second: u64) -> bool {
    all.get(&id).is_some_and(|kept| kept.slot() == second as u16)
}

/// A session that is being changed.
pub(super) struct Changing<'a> {
    kept: &'a mut Kept,
    /// `None`: it is dropped.
    owning: Option<Owning>,
}

impl Deref for Changing<'_> {
    type Target = Owning;

    fn deref(&self) -> &Owning {
        self.owning.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut Owning {
        self.owning.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if let Some(owning) = mem::take(&mut self.owning) {
            *self.kept = Kept::of(owning);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SessionId {
        SessionId::next()
    }

    fn owning(term: u64, last_try: u64) -> Owning {
        Owning::new(Owned::new(term, Revision(7), last_try, None), false)
    }

    #[test]
    fn a_quiet_session_takes_few_bytes() {
        assert_eq!(size_of::<Kept>(), 16);
    }

    #[test]
    fn it_is_the_same_whether_it_fits_or_not() {
        for (term, last_try) in [(1, 0), (255, u64::from(u32::MAX)), (256, 1), (3, u64::MAX)] {
            let (mut all, id) = (AllOwned::new(), id());
            all.insert(id, owning(term, last_try));
            let got = all.get(id).expect("it is there");
            assert_eq!((got.owned.term, got.owned.last_try(), got.owned.revision), (term, last_try, Revision(7)));

            let mut changing = all.get_mut(id).expect("it is there");
            changing.is_watched = true;
            changing.owned.thawed(Revision(8));
            drop(changing);
            let got = all.remove(id).expect("it is there");
            assert_eq!((got.is_watched, got.owned.revision, all.has(id)), (true, Revision(8), false));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_renewed_once_however_often_it_was_written() {
        let (mut all, id) = (AllOwned::new(), id());
        all.insert(id, owning(1, 0));
        for _ in 0..5 {
            all.renew_later(id);
            tokio::time::advance(Duration::from_secs(7)).await;
        }
        assert_eq!(all.take_renewals(Instant::now() + RENEW_AFTER - Duration::from_secs(8)), []);
        assert_eq!(all.take_renewals(Instant::now() + RENEW_AFTER), [id]);
        assert_eq!((all.next_renewal(), all.renewals_len), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_come_and_go_leave_nothing() {
        let mut all = AllOwned::new();
        for _ in 0..100_000 {
            let id = id();
            all.insert(id, owning(1, 0));
            all.renew_later(id);
            all.remove(id);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(all.renewals_len <= 4097, "{} wait", all.renewals_len);
    }

    #[test]
    fn those_of_a_former_life_are_stale() {
        let (mut all, one, two) = (AllOwned::new(), id(), id());
        all.insert(one, owning(1, 0));
        all.insert(two, owning(1, 0));
        assert_eq!(all.all_stale().len(), 2);
        assert!(all.get(one).is_some_and(|owning| owning.is_stale) && all.get(two).is_some_and(|it| it.is_stale));
    }
}
