//! Values whose numbers stay while others come and go.

/// Values by their number. A number is used again after its value was removed.
#[derive(Debug)]
pub(crate) struct Slots<T>(Vec<Option<T>>);

impl<T> Slots<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Returns the number that the next value gets: the least that is free.
    pub(crate) fn next(&self) -> usize {
        self.0.iter().position(Option::is_none).unwrap_or(self.0.len())
    }

    /// Puts a value where [`next`](Self::next) says. Returns its number.
    pub(crate) fn insert(&mut self, value: T) -> usize {
        let number = self.next();
        match self.0.get_mut(number) {
            Some(slot) => *slot = Some(value),
            None => self.0.push(Some(value)),
        }
        number
    }

    /// Returns the number that no value has, nor any greater one.
    pub(crate) fn end(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn remove(&mut self, number: usize) -> Option<T> {
        self.0.get_mut(number)?.take()
    }

    pub(crate) fn get(&self, number: usize) -> Option<&T> {
        self.0.get(number)?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        self.0.get_mut(number)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_free_ones_are_used_again() {
        let mut slots = Slots::new();
        assert_eq!(['a', 'b', 'c'].map(|value| slots.insert(value)), [0, 1, 2]);
        assert_eq!((slots.remove(1), slots.remove(1), slots.remove(9)), (Some('b'), None, None));
        assert_eq!([1, 2].map(|number| slots.get_mut(number).copied()), [None, Some('c')]);
        assert_eq!((slots.next(), slots.insert('d'), slots.insert('e')), (1, 1, 3));
        assert_eq!(slots.iter().collect::<String>(), "adce");
        for number in 0..4 {
            slots.remove(number);
        }
        assert!(slots.is_empty() && slots.next() == 0);
    }
}
