//! The rights that capture needs, ready for a DBA.

use super::quote;

/// The statements that give `role` exactly what is read: two tables, nothing else. Also for catalogs before 4.0.3, where
/// the counter is left out.
pub fn grants(role: &str, database: &str, schema: &str, with_generations: bool) -> String {
    let (role, database, schema) = (quote(role), quote(database), quote(schema));
    let counter = if with_generations {
        format!("grant select on {schema}.catalog_generation_counter to {role};\n")
    } else {
        String::new()
    };
    format!(
        "grant connect on database {database} to {role};\n\
         grant usage on schema {schema} to {role};\n\
         grant select on {schema}.final_entities to {role};\n\
         {counter}"
    )
}

/// What `role` needs besides to install the triggers by itself: a schema of its own, and the right to add triggers to one table.
pub fn trigger_grants(role: &str, schema: &str, trigger_schema: &str) -> String {
    let (role, schema, own) = (quote(role), quote(schema), quote(trigger_schema));
    format!(
        "create schema if not exists {own} authorization {role};\n\
         grant trigger on {schema}.final_entities to {role};\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        let text = grants("bridge\"; drop table x; --", "backstage_plugin_catalog", "public", true);

        assert!(text.contains(r#"to "bridge""; drop table x; --";"#), "{text}");
        assert_eq!(text.lines().count(), 4);
    }
}
