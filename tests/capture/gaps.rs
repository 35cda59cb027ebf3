//! What capture could not see is noticed, repaired by a reconcile, and counted.
