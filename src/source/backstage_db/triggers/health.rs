//! Whether the triggers are there, switched on, and ours.
//!
//! Keeps P3: capture by triggers is taken up only when nothing is missing, and the schema is looked at again at every connection
//! and every few seconds. In between, each transaction of capture reads the triggers' identity in its own snapshot.

use super::sql::{delete_body, trigger_names, write_body};
use crate::source::backstage_db::catalog::Catalog;
use crate::source::owner::SourceError;

/// Triggers with `or replace`, without which they cannot be laid again by whoever does not own the table.
pub(crate) const SERVER_VERSION_MIN: i32 = 140_000;

/// Rights are asked by oid: by name, a schema that may not be used is an error.
const INSTALLED: &str = "\
select
  has_schema_privilege(n.oid, 'usage'),
  pg_is_in_recovery(),
  array(
    select c.relname::text
    from pg_class c
    where c.relnamespace = n.oid
      and c.relname in ('outbox', 'gap', 'state')
      and has_table_privilege(c.oid, 'select')
      and has_table_privilege(c.oid, 'delete')
      and has_table_privilege(c.oid, 'update')
  ),
  array(
    select t.tgname::text
    from pg_trigger t
    join pg_proc p on p.oid = t.tgfoid
    where t.tgrelid = to_regclass('final_entities')
      and t.tgname = any($2)
      and t.tgenabled in ('O', 'A')
      and p.pronamespace = n.oid
  ),
  array(
    select p.prosrc
    from pg_proc p
    where p.pronamespace = n.oid and p.prosecdef and p.proname in ('on_write', 'on_delete')
  ),
  array(
    select c.relname::text
    from pg_class c
    where c.relnamespace = n.oid
      and c.relname in ('outbox', 'gap')
      and has_table_privilege((select min(p.proowner) from pg_proc p where p.pronamespace = n.oid and p.proname = 'on_write'), c.oid, 'insert')
  )
from pg_namespace n
where n.nspname = $1";

/// What there is of the triggers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Triggers {
    /// Nothing: they were never installed, or are uninstalled.
    #[default]
    Absent,
    /// Something is missing or changed; this says what.
    Broken(String),
    /// They write, and we may read.
    Ready,
}

impl Triggers {
    /// What is wrong with them, if they were installed.
    pub(crate) fn trouble(&self) -> Option<&str> {
        match self {
            Triggers::Broken(trouble) => Some(trouble),
            Triggers::Absent | Triggers::Ready => None,
        }
    }
}

impl Catalog {
    /// Looks at the triggers, in the transaction under way.
    pub(crate) async fn triggers(&mut self) -> Result<Triggers, SourceError> {
        let outbox = self.outbox().to_owned();
        let names = trigger_names(&outbox).to_vec();
        let query = sqlx::query(INSTALLED).bind(&outbox).bind(&names);
        let rows = self.all("look at the triggers", query).await?;
        let Some(row) = rows.first() else { return Ok(Triggers::Absent) };
        let found = Found {
            may_use: self.get(row, 0)?,
            is_standby: self.get(row, 1)?,
            tables: self.get(row, 2)?,
            triggers: self.get(row, 3)?,
            bodies: self.get(row, 4)?,
            writable: self.get(row, 5)?,
        };
        Ok(found.judge(&outbox))
    }
}

/// What the catalog's database shows of it.
#[derive(Debug)]
struct Found {
    may_use: bool,
    is_standby: bool,
    /// Our tables that we may read and clean.
    tables: Vec<String>,
    /// Triggers that are switched on.
    triggers: Vec<String>,
    /// What the functions do.
    bodies: Vec<String>,
    /// Our tables that the functions' owner may write.
    writable: Vec<String>,
}

impl Found {
    fn judge(&self, outbox: &str) -> Triggers {
        let missing_trigger = trigger_names(outbox).into_iter().find(|name| !self.triggers.contains(name));
        let missing = |tables: &[String], wanted: &[&str]| {
            wanted.iter().find(|name| !tables.iter().any(|table| table == *name)).map(|name| format!("{outbox}.{name}"))
        };
        let is_ours = [write_body(outbox), delete_body(outbox)].iter().all(|body| self.bodies.contains(body));
        if self.triggers.is_empty() && !is_ours {
            return Triggers::Absent;
        }
        if self.is_standby {
            Triggers::Broken("this server is a standby, where the outbox cannot be cleaned".to_owned())
        } else if !self.may_use {
            Triggers::Broken(format!("schema {outbox} may not be used"))
        } else if let Some(name) = missing_trigger {
            Triggers::Broken(format!("trigger {name} is missing or disabled"))
        } else if !is_ours {
            Triggers::Broken(format!("the functions of schema {outbox} are not those of this release"))
        } else if let Some(name) = missing(&self.tables, &["outbox", "gap", "state"]) {
            Triggers::Broken(format!("{name} is missing, or may not be read and cleaned"))
        } else if let Some(name) = missing(&self.writable, &["outbox", "gap"]) {
            Triggers::Broken(format!("{name} may not be written by the triggers"))
        } else {
            Triggers::Ready
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Found {
        let tables = ["outbox", "gap", "state"].map(str::to_owned).to_vec();
        Found {
            may_use: true,
            is_standby: false,
            writable: tables.clone(),
            tables,
            triggers: trigger_names("b").to_vec(),
            bodies: vec![write_body("b"), delete_body("b")],
        }
    }

    #[track_caller]
    fn check(found: &Found, part: &str) {
        match found.judge("b") {
            Triggers::Broken(reason) => assert!(reason.contains(part), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(healthy().judge("b"), Triggers::Ready);
        let uninstalled = Found { triggers: Vec::new(), bodies: Vec::new(), ..healthy() };
        assert_eq!(uninstalled.judge("b"), Triggers::Absent);
        check(&Found { triggers: trigger_names("b")[..2].to_vec(), ..healthy() }, "b_delete is missing or disabled");
        check(&Found { triggers: Vec::new(), ..healthy() }, "b_insert is missing");
        check(
            &Found { bodies: vec![write_body("b"), "begin end".to_owned()], ..healthy() },
            "not those of this release",
        );
        check(&Found { tables: vec!["gap".to_owned(), "state".to_owned()], ..healthy() }, "b.outbox is missing");
        check(&Found { writable: vec!["gap".to_owned()], ..healthy() }, "may not be written");
        check(&Found { is_standby: true, ..healthy() }, "standby");
        check(&Found { may_use: false, ..healthy() }, "may not be used");
    }
}
