//! Pure decisions: placement, waiting, launching, eviction.
