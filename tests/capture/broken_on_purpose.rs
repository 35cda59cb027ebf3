//! Whatever breaks in the outbox, every operation of the catalog still succeeds; the gap is reported and healed.
