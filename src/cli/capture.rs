//! How a source captures, as `source status` tells it: the way and why, how far, what was repaired, what may be missing.

use serde_json::Value;

use super::output::plain;

/// The lines of one source's details; none for a source that captures nothing.
pub(super) fn lines(source: &Value) -> Vec<String> {
    let Some(detail) = source.get("detail").filter(|detail| detail.get("capture").is_some()) else {
        return Vec::new();
    };
    let why = text(detail, "/why").map(|why| format!(" ({why})")).unwrap_or_default();
    let mut lines = vec![format!("capture {}{why}", text(detail, "/capture").unwrap_or_default())];
    lines.extend(through(detail));
    lines.extend(outbox(detail));
    lines.extend(under_way(detail));
    lines.push(reconciled(detail));
    lines.push(gaps(detail));
    lines.extend(held(detail));
    lines
}

fn through(detail: &Value) -> Option<String> {
    let at = text(detail, "/capturedThrough/at")?;
    let mut line = format!("captured through what was committed by {at}");
    if let Some(generation) = text(detail, "/capturedThrough/generation") {
        line.push_str(&format!(", generation {generation}"));
    }
    if let Some(lag) = text(detail, "/lagChanges") {
        line.push_str(&format!(", {lag} changes behind"));
    }
    Some(format!("{line}; {} entities, {} rejected", shown(detail, "/entities"), shown(detail, "/rejected")))
}

fn outbox(detail: &Value) -> Option<String> {
    let rows = text(detail, "/outbox/rows")?;
    let oldest = text(detail, "/outbox/oldestAt").map(|at| format!(", the oldest of {at}")).unwrap_or_default();
    Some(format!("outbox {rows} rows, {} bytes{oldest}", shown(detail, "/outbox/bytes")))
}

fn under_way(detail: &Value) -> Option<String> {
    let reason = text(detail, "/reconcile/reason")?;
    let phase = match detail.pointer("/reconcile/sweeping") {
        Some(Value::Bool(true)) => ", now looking for removals",
        _ => "",
    };
    Some(format!(
        "reconcile under way since {} ({reason}): {} compared, {} repaired{phase}",
        shown(detail, "/reconcile/startedAt"),
        shown(detail, "/reconcile/compared"),
        shown(detail, "/reconcile/repaired"),
    ))
}

fn reconciled(detail: &Value) -> String {
    let next = text(detail, "/nextReconcileAt").map(|at| format!("; next {at}")).unwrap_or_default();
    match text(detail, "/lastReconcile/endedAt") {
        None => format!("no reconcile ended yet{next}"),
        Some(ended) => format!(
            "last reconcile {ended} ({}): {} compared, {} repaired{next}",
            shown(detail, "/lastReconcile/reason"),
            shown(detail, "/lastReconcile/compared"),
            shown(detail, "/lastReconcile/repaired"),
        ),
    }
}

fn gaps(detail: &Value) -> String {
    match text(detail, "/gaps/last/noticedAt") {
        None => "no gap noticed".to_owned(),
        Some(at) => format!(
            "gaps noticed: {}, the last {at}: {}",
            shown(detail, "/gaps/count"),
            shown(detail, "/gaps/last/reason")
        ),
    }
}

/// By origin, the first few refs each.
fn held(detail: &Value) -> Vec<String> {
    let by_origin = detail.pointer("/heldRemovals/byOrigin").and_then(Value::as_object);
    let line = |(origin, held): (&String, &Value)| {
        let refs = held.get("refs").and_then(Value::as_array);
        let refs: Vec<String> = refs.into_iter().flatten().filter_map(Value::as_str).map(plain).collect();
        format!("held removals of {}: {}, such as {}", plain(origin), shown(held, "/count"), refs.join(" "))
    };
    by_origin.into_iter().flatten().map(line).collect()
}

fn text(value: &Value, pointer: &str) -> Option<String> {
    match value.pointer(pointer)? {
        Value::Null => None,
        Value::String(text) => Some(plain(text)),
        other => Some(other.to_string()),
    }
}

fn shown(value: &Value, pointer: &str) -> String {
    text(value, pointer).unwrap_or_else(|| "?".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_that_is_known_has_its_line() {
        let detail = json!({
            "capture": "triggers", "why": "auto: triggers are installed",
            "capturedThrough": { "at": "2026-11-25T01:00:00Z" }, "entities": 7, "rejected": 1,
            "outbox": { "rows": 3, "bytes": 8192, "oldestAt": "2026-11-25T00:59:59Z" },
            "reconcile": { "reason": "the database server was restarted", "startedAt": "2026-11-25T00:59:00Z",
                "compared": 5, "repaired": 2, "sweeping": true },
            "lastReconcile": null, "nextReconcileAt": "2026-11-26T00:00:00Z",
            "gaps": { "count": 2, "last": { "reason": "the database server was restarted", "noticedAt": "2026-11-25T00:59:00Z" } },
            "heldRemovals": { "count": 1, "byOrigin": { "url:x": { "count": 1, "refs": ["component:default/a"] } } },
        });

        assert_eq!(
            lines(&json!({ "detail": detail })),
            [
                "capture triggers (auto: triggers are installed)",
                "captured through what was committed by 2026-11-25T01:00:00Z; 7 entities, 1 rejected",
                "outbox 3 rows, 8192 bytes, the oldest of 2026-11-25T00:59:59Z",
                "reconcile under way since 2026-11-25T00:59:00Z (the database server was restarted): 5 compared, 2 repaired, now looking for removals",
                "no reconcile ended yet; next 2026-11-26T00:00:00Z",
                "gaps noticed: 2, the last 2026-11-25T00:59:00Z: the database server was restarted",
                "held removals of url:x: 1, such as component:default/a",
            ]
        );
        assert!(lines(&json!({ "state": "running" })).is_empty());
    }
}
