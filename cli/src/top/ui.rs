//! What the user chose: which table has the keys, how it is sorted, what is filtered, what is looked at closely.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;

use super::columns::{self, FUNCTIONS, RUNNERS};
use super::model::{FunctionRow, Picture, RunnerRow};

/// The tables that can have the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pane {
    Runners,
    Functions,
}

/// By which column a table is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    pub column: usize,
    pub down: bool,
}

/// What is to be done after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Show,
    Quit,
    Suspend,
}

/// See the module.
#[derive(Debug)]
pub struct Ui {
    pub pane: Pane,
    pub runners: TableState,
    pub functions: TableState,
    pub sort_runners: Sort,
    pub sort_functions: Sort,
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    pub paused: bool,
    pub help: bool,
    /// What is looked at closely: of the table that has the keys, by its name.
    pub closely: Option<String>,
    pub colours: bool,
}

impl Ui {
    pub fn new(filter: String, sort: usize, colours: bool) -> Self {
        Self {
            pane: Pane::Functions,
            runners: TableState::default(),
            functions: TableState::default(),
            sort_runners: Sort { column: 0, down: false },
            sort_functions: Sort { column: sort, down: sort > 0 },
            filter,
            typing: false,
            paused: false,
            help: false,
            closely: None,
            colours,
        }
    }

    /// What of the picture is shown, in its order.
    pub fn chosen<'a>(&self, picture: &'a Picture) -> (Vec<&'a RunnerRow>, Vec<&'a FunctionRow>) {
        let wanted = self.filter.to_lowercase();
        let has = |name: &str| name.to_lowercase().contains(&wanted);
        // A filter is for what one is looking for: of the other table nothing should be missing.
        let runners = picture.runners.iter().filter(|row| self.pane != Pane::Runners || has(&row.name));
        let functions = picture.functions.iter().filter(|row| self.pane != Pane::Functions || has(&row.name));
        (
            columns::sorted(runners.collect(), &RUNNERS, self.sort_runners),
            columns::sorted(functions.collect(), &FUNCTIONS, self.sort_functions),
        )
    }

    /// A key was pressed while this was shown.
    pub fn key(&mut self, key: KeyEvent, picture: &Picture) -> Next {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Next::Quit,
            KeyCode::Char('z') if control => return Next::Suspend,
            _ if self.typing => self.typed(key.code),
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc if self.closely.is_some() => self.closely = None,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('s') => self.sort(1),
            KeyCode::Char('S') => self.sort(-1),
            KeyCode::Char('r') => {
                let sort = self.sort_of();
                sort.down = !sort.down;
            }
            KeyCode::Tab | KeyCode::BackTab if self.closely.is_none() => {
                self.pane = match self.pane {
                    Pane::Runners => Pane::Functions,
                    Pane::Functions => Pane::Runners,
                };
            }
            KeyCode::Enter if self.closely.is_some() => self.closely = None,
            KeyCode::Enter => self.closely = self.selected(picture),
            KeyCode::Up | KeyCode::Char('k') => self.move_by(-1, picture),
            KeyCode::Down | KeyCode::Char('j') => self.move_by(1, picture),
            KeyCode::PageUp => self.move_by(-10, picture),
            KeyCode::PageDown => self.move_by(10, picture),
            KeyCode::Home | KeyCode::Char('g') => self.move_by(isize::MIN, picture),
            KeyCode::End | KeyCode::Char('G') => self.move_by(isize::MAX, picture),
            _ => {}
        }
        Next::Show
    }

    fn typed(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(c) => self.filter.push(c),
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.typing = false;
            }
            _ => {}
        }
    }

    fn sort_of(&mut self) -> &mut Sort {
        match self.pane {
            Pane::Runners => &mut self.sort_runners,
            Pane::Functions => &mut self.sort_functions,
        }
    }

    /// By another column: numbers from the largest, names from the first.
    fn sort(&mut self, by: isize) {
        let columns = match self.pane {
            Pane::Runners => RUNNERS.len(),
            Pane::Functions => FUNCTIONS.len(),
        };
        let sort = self.sort_of();
        let column = (sort.column as isize + by).rem_euclid(columns as isize) as usize;
        *sort = Sort { column, down: column > 0 };
    }

    fn names(&self, picture: &Picture) -> Vec<String> {
        let (runners, functions) = self.chosen(picture);
        match self.pane {
            Pane::Runners => runners.iter().map(|row| row.name.clone()).collect(),
            Pane::Functions => functions.iter().map(|row| row.name.clone()).collect(),
        }
    }

    fn selected(&self, picture: &Picture) -> Option<String> {
        let at = match self.pane {
            Pane::Runners => self.runners.selected(),
            Pane::Functions => self.functions.selected(),
        };
        self.names(picture).into_iter().nth(at.unwrap_or(0))
    }

    fn move_by(&mut self, by: isize, picture: &Picture) {
        let last = self.names(picture).len().saturating_sub(1);
        let state = match self.pane {
            Pane::Runners => &mut self.runners,
            Pane::Functions => &mut self.functions,
        };
        let to = match state.selected() {
            // The first key shows where one is.
            None if by.unsigned_abs() == 1 => 0,
            at => at.unwrap_or(0).saturating_add_signed(by).min(last),
        };
        state.select(Some(to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::model::Gain;

    fn picture() -> Picture {
        let functions =
            [("a/slow", 1.0, 9), ("b/fast", 90.0, 1), ("b/none", 0.0, 0)].map(|(name, rate, busy)| {
                FunctionRow {
                    name: name.to_owned(),
                    gain: Gain { rate: Some(rate), ..Gain::default() },
                    idle: 0,
                    busy,
                    waiting: 0,
                    runners: 1,
                    format: String::new(),
                    memory: 0,
                    calls: 0,
                }
            });
        Picture { functions: functions.into(), ..Picture::default() }
    }

    fn shown(ui: &Ui) -> Vec<String> {
        ui.chosen(&picture()).1.iter().map(|row| row.name.clone()).collect()
    }

    fn press(ui: &mut Ui, keys: &str) -> Next {
        let mut next = Next::Show;
        for c in keys.chars() {
            let code = match c {
                '⏎' => KeyCode::Enter,
                '⎋' => KeyCode::Esc,
                '⇥' => KeyCode::Tab,
                '⌫' => KeyCode::Backspace,
                '↓' => KeyCode::Down,
                c => KeyCode::Char(c),
            };
            next = ui.key(KeyEvent::new(code, KeyModifiers::NONE), &picture());
        }
        next
    }

    #[test]
    fn keys_sort_filter_and_choose() {
        let mut ui = Ui::new(String::new(), 1, false);
        assert_eq!(shown(&ui), ["b/fast", "a/slow", "b/none"], "the busiest first");
        press(&mut ui, "r");
        assert_eq!(shown(&ui), ["b/none", "a/slow", "b/fast"]);
        press(&mut ui, "S");
        assert_eq!(shown(&ui), ["a/slow", "b/fast", "b/none"], "by name, from the first");
        press(&mut ui, "/B/x⌫⏎");
        assert_eq!((shown(&ui), ui.typing), (vec!["b/fast".to_owned(), "b/none".to_owned()], false));
        press(&mut ui, "↓↓↓↓⏎");
        assert_eq!(ui.closely.as_deref(), Some("b/none"));
        press(&mut ui, "⎋");
        assert_eq!((ui.closely.as_deref(), ui.filter.as_str()), (None, "B/"), "one thing at a time");
        press(&mut ui, "⎋");
        assert_eq!(shown(&ui).len(), 3);
    }

    #[test]
    fn what_ends_it_ends_it_also_while_a_filter_is_typed() {
        let mut ui = Ui::new(String::new(), 1, false);
        assert_eq!(press(&mut ui, "/q"), Next::Show);
        assert_eq!(ui.filter, "q");
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(ui.key(control('c'), &picture()), Next::Quit);
        assert_eq!(ui.key(control('z'), &picture()), Next::Suspend);
        assert_eq!(press(&mut ui, "⏎q"), Next::Quit);
    }
}
