//! The rights that read-only capture needs, ready for a DBA.

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
