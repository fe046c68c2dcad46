//! The Grafana dashboards of `deploy/`, made from the definitions of metrics and from the names of spans: what a panel asks for exists, or this
//! does not compile or panics. A test writes the files and says when they are stale.

mod boards;
pub mod draw;
pub mod metrics;
pub mod query;

use serde_json::{Value, json};

pub use self::boards::all;

/// What a panel shows its numbers as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Count,
    PerSecond,
    Seconds,
    Bytes,
    Share,
    Cores,
}

impl Unit {
    /// Grafana's name for it.
    fn as_str(self) -> &'static str {
        match self {
            Unit::Count => "short",
            Unit::PerSecond => "reqps",
            Unit::Seconds => "s",
            Unit::Bytes => "bytes",
            Unit::Share => "percentunit",
            Unit::Cores => "none",
        }
    }
}

/// How a panel is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Lines,
    /// One above the other.
    Stacked,
    /// One number, the last.
    Number,
    /// The last of each series, in rows; the column of the label leads to the dashboard of what it names.
    Table {
        label: &'static str,
        leads_to: &'static str,
    },
    /// Spread over time.
    Heatmap,
    /// Traces that a query finds.
    Traces,
    /// Who calls whom.
    Graph,
    Logs,
}

/// Who answers a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Metrics,
    Traces,
    Logs,
}

impl Source {
    /// All of them: the kind of data source, and the variable that chooses one.
    pub const ALL: [Source; 3] = [Source::Metrics, Source::Traces, Source::Logs];

    /// The kind of data source.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Source::Metrics => "prometheus",
            Source::Traces => "tempo",
            Source::Logs => "loki",
        }
    }

    /// The variable that chooses one, since not every Grafana calls them as ours does.
    fn variable(self) -> &'static str {
        match self {
            Source::Metrics => "metrics",
            Source::Traces => "traces",
            Source::Logs => "logs",
        }
    }

    fn reference(self) -> Value {
        json!({"type": self.kind(), "uid": format!("${{{}}}", self.variable())})
    }
}

/// A query, and what its series are called.
#[derive(Debug, Clone)]
pub struct Query {
    pub text: String,
    pub legend: String,
    /// Something is there whenever a fleet has had a call.
    pub always: bool,
}

/// A panel.
#[derive(Debug, Clone)]
pub struct Panel {
    pub title: &'static str,
    pub description: &'static str,
    pub look: Look,
    pub unit: Unit,
    /// In 24ths of a page.
    pub width: u32,
    /// Which numbers are good ones.
    pub good: Option<Good>,
    pub queries: Vec<Query>,
}

/// Which numbers are good ones: they are green.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Good {
    /// Red below.
    From(f64),
    /// Orange from there on.
    Below(f64),
}

impl Panel {
    /// Lines of seconds, counts and so on.
    #[must_use]
    pub fn new(title: &'static str, description: &'static str, look: Look, unit: Unit) -> Self {
        let width = if look == Look::Number { 4 } else { 8 };
        Self { title, description, look, unit, width, good: None, queries: Vec::new() }
    }

    /// So wide.
    #[must_use]
    pub fn width(mut self, width: u32) -> Self {
        self.width = width;
        self
    }

    /// With colours that say whether it is well.
    #[must_use]
    pub fn good(mut self, good: Good) -> Self {
        self.good = Some(good);
        self
    }

    /// Asks for this; what it gives is called `legend`.
    #[must_use]
    pub fn ask(mut self, text: impl Into<String>, legend: &str) -> Self {
        self.queries.push(Query { text: text.into(), legend: legend.to_owned(), always: true });
        self
    }

    /// The same for what a fleet without trouble has none of.
    #[must_use]
    pub fn ask_maybe(mut self, text: impl Into<String>, legend: &str) -> Self {
        self.queries.push(Query { text: text.into(), legend: legend.to_owned(), always: false });
        self
    }

    /// Who answers it.
    #[must_use]
    pub fn source(&self) -> Source {
        match self.look {
            Look::Traces | Look::Graph => Source::Traces,
            Look::Logs => Source::Logs,
            _ => Source::Metrics,
        }
    }

    fn height(&self) -> u32 {
        match self.look {
            Look::Number => 4,
            Look::Traces | Look::Graph | Look::Logs => 10,
            _ => 8,
        }
    }

    fn json(&self, id: u32, x: u32, y: u32) -> Value {
        let kind = match self.look {
            Look::Lines | Look::Stacked => "timeseries",
            Look::Number => "stat",
            Look::Table { .. } | Look::Traces => "table",
            Look::Heatmap => "heatmap",
            Look::Graph => "nodeGraph",
            Look::Logs => "logs",
        };
        let targets: Vec<Value> =
            self.queries.iter().zip('A'..).map(|(query, id)| self.target(query, id)).collect();
        json!({
            "id": id,
            "title": self.title,
            "description": self.description,
            "type": kind,
            "datasource": self.source().reference(),
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height()},
            "targets": targets,
            "fieldConfig": {"defaults": self.defaults(), "overrides": self.overrides()},
            "options": self.options(),
            "transformations": self.transformations(),
        })
    }

    fn target(&self, query: &Query, id: char) -> Value {
        let mut target = json!({"datasource": self.source().reference(), "refId": id.to_string()});
        let more = match self.look {
            Look::Lines | Look::Stacked | Look::Number => {
                json!({
                    "expr": query.text, "legendFormat": query.legend, "editorMode": "code", "range": true,
                    "exemplar": query.text.contains("_bucket"),
                })
            }
            Look::Heatmap => {
                json!({"expr": query.text, "legendFormat": "{{le}}", "format": "heatmap", "editorMode": "code", "range": true})
            }
            Look::Table { .. } => {
                json!({"expr": query.text, "legendFormat": query.legend, "format": "table", "editorMode": "code", "instant": true})
            }
            Look::Traces => {
                json!({"queryType": "traceql", "query": query.text, "limit": 20, "tableType": "traces"})
            }
            Look::Graph => json!({"queryType": "serviceMap"}),
            Look::Logs => json!({"expr": query.text, "queryType": "range", "editorMode": "code"}),
        };
        merge(&mut target, more);
        target
    }

    fn defaults(&self) -> Value {
        let mut defaults = json!({"unit": self.unit.as_str(), "noValue": "none in this time"});
        let drawn = match self.look {
            // Without calls there is no share of them and no percentile, and Prometheus says NaN.
            Look::Number => json!({
                "noValue": if matches!(self.unit, Unit::Share | Unit::Seconds) { "–" } else { "0" },
                "mappings": [{"type": "special", "options": {"match": "null+nan", "result": {"text": "–", "index": 0}}}],
                "thresholds": {"mode": "absolute", "steps": self.steps()},
            }),
            Look::Lines => {
                json!({"custom": {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never"}, "min": 0})
            }
            Look::Stacked => json!({
                "custom": {"lineWidth": 1, "fillOpacity": 60, "showPoints": "never", "stacking": {"mode": "normal", "group": "A"}},
                "min": 0,
            }),
            _ => json!({}),
        };
        merge(&mut defaults, drawn);
        defaults
    }

    fn steps(&self) -> Vec<Value> {
        let Some(good) = &self.good else { return vec![json!({"color": "text", "value": null})] };
        let (below, above) = match good {
            Good::From(from) => ("red", (from, "green")),
            Good::Below(below) => ("green", (below, "orange")),
        };
        vec![json!({"color": below, "value": null}), json!({"color": above.1, "value": above.0})]
    }

    fn overrides(&self) -> Value {
        let Look::Table { label, leads_to } = self.look else { return json!([]) };
        let url = format!("/d/{leads_to}?var-{label}=${{__data.fields.{label}}}&${{__url_time_range}}");
        json!([{
            "matcher": {"id": "byName", "options": label},
            "properties": [{"id": "links", "value": [{"title": "Show it alone", "url": url}]}],
        }])
    }

    fn options(&self) -> Value {
        match self.look {
            Look::Lines | Look::Stacked => json!({
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Look::Number => json!({
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
                "colorMode": "value", "graphMode": "area", "textMode": "auto",
            }),
            Look::Table { .. } => {
                json!({"showHeader": true, "sortBy": [{"displayName": self.queries[0].legend, "desc": true}]})
            }
            Look::Traces => json!({"showHeader": true}),
            Look::Heatmap => json!({
                "calculate": false, "cellGap": 1, "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
                "yAxis": {"unit": self.unit.as_str()}, "exemplars": {"color": "rgba(255,0,255,0.7)"},
            }),
            Look::Graph => json!({}),
            Look::Logs => {
                json!({"showTime": true, "wrapLogMessage": true, "enableLogDetails": true, "sortOrder": "Descending"})
            }
        }
    }

    /// A table has a column a query, called as its legend says.
    fn transformations(&self) -> Value {
        if !matches!(self.look, Look::Table { .. }) {
            return json!([]);
        }
        let mut names = serde_json::Map::new();
        match &self.queries[..] {
            [one] => _ = names.insert("Value".to_owned(), json!(one.legend)),
            more => {
                names.extend(more.iter().zip('A'..).map(|(q, id)| (format!("Value #{id}"), json!(q.legend))))
            }
        }
        json!([
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": true}, "indexByName": {}, "renameByName": names}},
        ])
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

/// Panels that belong together.
#[derive(Debug, Clone)]
pub struct Row {
    pub title: &'static str,
    pub panels: Vec<Panel>,
}

/// A dashboard.
#[derive(Debug, Clone)]
pub struct Board {
    /// Also the name of its file.
    pub uid: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    /// What is chosen above it: its name, and the query of what there is to choose.
    pub variable: Option<(&'static str, String)>,
    pub rows: Vec<Row>,
}

impl Board {
    /// All its panels.
    pub fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|row| &row.panels)
    }

    /// As Grafana reads it.
    #[must_use]
    pub fn json(&self) -> String {
        let mut panels = Vec::new();
        let (mut id, mut y) = (0, 0);
        let mut next = || {
            id += 1;
            id
        };
        for row in &self.rows {
            panels.push(json!({
                "id": next(), "title": row.title, "type": "row", "collapsed": false,
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": [],
            }));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > 24 {
                    (x, y, tallest) = (0, y + tallest, 0);
                }
                panels.push(panel.json(next(), x, y));
                (x, tallest) = (x + panel.width, tallest.max(panel.height()));
            }
            y += tallest;
        }
        let board = json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["stoker"],
            "schemaVersion": 39,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            "timezone": "browser",
            "links": [{
                "title": "Stoker", "type": "dashboards", "tags": ["stoker"], "asDropdown": true, "keepTime": true, "icon": "external link",
                "includeVars": false, "targetBlank": false, "tooltip": "", "url": "",
            }],
            "templating": {"list": self.variables()},
            "panels": panels,
        });
        format!("{board:#}\n")
    }

    fn variables(&self) -> Vec<Value> {
        let used = |source: &Source| self.panels().any(|panel| panel.source() == *source);
        let mut all: Vec<Value> = Source::ALL
            .iter()
            .filter(|source| used(source))
            .map(|source| {
                json!({"name": source.variable(), "label": source.variable(), "type": "datasource", "query": source.kind(), "hide": 0})
            })
            .collect();
        if let Some((name, query)) = &self.variable {
            all.push(json!({
                "name": name, "label": name, "type": "query", "datasource": Source::Metrics.reference(),
                "query": {"query": query, "refId": "variable"}, "refresh": 2, "sort": 1, "includeAll": false, "multi": false, "hide": 0,
            }));
        }
        all
    }
}
