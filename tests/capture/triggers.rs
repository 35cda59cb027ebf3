//! Capture by triggers, on the oldest and the newest PostgreSQL: every committed version once, in the order of commits.
