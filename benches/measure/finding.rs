//! Whether the right row is found, by model, window and title weight: questions in a user's words over the real FAQ text.

use vecsync::config::{self, pipeline};
use vecsync::embed::{Cache, Embedder};
use vecsync::index::scan;

use super::Figures;
use crate::support::dice::Dice;
use crate::support::faq::{Entry, faq};
use crate::support::questions::{Index, Places, Question, place, questions};
use crate::support::vecsync::{PIPELINE, model_dir};

const WINDOWS: [usize; 4] = [64, 128, 256, 512];
/// `None`: without a title at all, also not in front of the windows.
const WEIGHTS: [Option<f32>; 5] = [None, Some(0.0), Some(0.15), Some(0.3), Some(0.5)];
/// What a pipeline file has that says nothing of them.
const DEFAULT: (usize, Option<f32>) = (256, Some(0.3));
/// As many of the best rows are looked at as a search shows that says nothing of it.
const SHOWN: usize = 5;
/// Drawings of as many questions as there are, to see what chance alone would change.
const DRAWINGS: usize = 10_000;

/// How one choice of model, window and title weight found.
struct Choice {
    model: &'static str,
    window: usize,
    weight: Option<f32>,
    points: usize,
    places: Places,
    /// Of the questions that the answer's title does not speak of.
    inside: Places,
}

/// The default's figures for each model, and a table of all.
pub fn measure(models: &[&'static str]) -> (Vec<(&'static str, Figures)>, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let faq = faq();
    let questions = questions(&faq);
    let (mut all, mut figures) = (vec![], vec![]);
    for model in models {
        eprintln!("finding, {model}: {} questions, {} rows", questions.len(), faq.len());
        let (choices, same) = runtime.block_on(of_model(model, &faq, &questions));
        let default = choices.iter().find(|choice| choice.is_default()).expect("it is among them");
        figures.push((*model, default.figures(same)));
        all.extend(choices);
    }
    let table = table(&all);
    (figures, table)
}

/// Every window and weight, and how many of the default's answers are those of an exact scan.
async fn of_model(model: &'static str, faq: &[Entry], questions: &[Question]) -> (Vec<Choice>, usize) {
    let precision = if model == "fp32" { config::Precision::Fp32 } else { config::Precision::Int8 };
    let settings = config::Model { precision: Some(precision), dir: model_dir(), runtime: None };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let embedder = Embedder::load(&settings, cores).expect("the model is there");
    let mut queries = vec![];
    for question in questions {
        queries.push(embedder.query(&question.ask).await.expect("a vector").vector);
    }
    let folder = tempfile::tempdir().expect("a folder");
    // Texts are embedded once for each window; the weights mix the same vectors.
    let cache = Cache::open(&folder.path().join("embeddings"));
    let (mut choices, mut same) = (vec![], 0);
    for window in WINDOWS {
        for weight in WEIGHTS {
            let index = Index::of(&embedder, &document(window, weight), &cache, faq).await;
            let again = weight > Some(0.15) && index.computed > 0;
            assert!(!again, "{} texts were embedded again for another weight", index.computed);
            let found: Vec<Vec<u64>> = queries.iter().map(|query| index.search(query)).collect();
            let places: Vec<Option<usize>> =
                found.iter().zip(questions).map(|(found, question)| place(found, question)).collect();
            let inside = questions.iter().zip(&places).filter(|(question, _)| question.inside);
            let inside = Places(inside.map(|(_, place)| *place).collect());
            let points = index.rows.iter().map(|(_, row)| row.windows.len()).sum();
            let choice = Choice { model, window, weight, points, places: Places(places), inside };
            if choice.is_default() {
                let exact = queries.iter().map(|query| exact(&index, query));
                same = exact.zip(&found).filter(|(exact, found)| found.starts_with(exact)).count();
            }
            choices.push(choice);
        }
    }
    (choices, same)
}

fn document(window: usize, weight: Option<f32>) -> config::Document {
    let file = PIPELINE.replace("[index]", &format!("window_tokens = {window}\n[index]"));
    let read = pipeline::parse("finding", &file, &|_| vec![]).unwrap_or_else(|problems| panic!("{problems}"));
    match weight {
        Some(title_weight) => config::Document { title_weight, ..read.document },
        None => config::Document { title: None, title_weight: 0.0, ..read.document },
    }
}

/// The best rows by the scores of all their windows, one after the other, without codes and bounds.
fn exact(index: &Index, query: &[f32]) -> Vec<u64> {
    let query = scan::Vector::new(query).expect("finite");
    let kernel = scan::Kernel::detect();
    let score = |vector: Vec<f32>| {
        let mut score = [0.0];
        kernel.dots(&[scan::Vector::new(&vector).expect("finite")], &query, &mut score);
        score[0]
    };
    let best = |row: &vecsync::event::EmbeddedRow| {
        row.windows.iter().map(|window| score(window.vector())).fold(f32::NEG_INFINITY, f32::max)
    };
    let mut rows: Vec<(u64, f32)> = index.rows.iter().map(|(id, row)| (*id, best(row))).collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    rows[..SHOWN].iter().map(|(id, _)| *id).collect()
}

impl Choice {
    fn is_default(&self) -> bool {
        (self.window, self.weight) == DEFAULT
    }

    fn figures(&self, same: usize) -> Figures {
        vec![
            ("questions", self.places.0.len() as f64),
            ("questions_inside", self.inside.0.len() as f64),
            ("hit_at_1_percent", percent(&self.places, 1)),
            ("hit_at_5_percent", percent(&self.places, SHOWN)),
            ("mrr", self.places.mrr()),
            ("as_exact_scan_percent", 100.0 * same as f64 / self.places.0.len() as f64),
        ]
    }
}

fn percent(places: &Places, limit: usize) -> f64 {
    100.0 * places.within(limit) as f64 / places.0.len() as f64
}

/// Markdown: a line a choice, each compared with the default of its model, question by question, and the models' defaults
/// with each other.
fn table(choices: &[Choice]) -> String {
    let names = [
        "model | window | title weight | points | hit@1 % | of those inside | hit@5 % | MRR",
        "hit@1 against the default | hit@5 | MRR, 95 % of drawings",
    ];
    let mut text = format!("| {} |\n| ---{} |\n", names.join(" | "), " | ---:".repeat(10));
    let mut defaults = vec![];
    for choice in choices {
        let default = choices.iter().find(|other| other.model == choice.model && other.is_default());
        let default = default.expect("it is among them");
        if choice.is_default() {
            defaults.push(choice);
        }
        let against = if choice.is_default() { "| default | | |".to_owned() } else { against(choice, default) };
        let Choice { model, window, weight, points, places, inside } = choice;
        let weight = weight.map_or("no title".to_owned(), |weight| weight.to_string());
        let (one, those_inside, five) = (percent(places, 1), percent(inside, 1), percent(places, SHOWN));
        let mrr = places.mrr();
        text.push_str(&format!(
            "| {model} | {window} | {weight} | {points} | {one:.1} | {those_inside:.1} | {five:.1} | {mrr:.3} {against}\n"
        ));
    }
    if let [one, other] = defaults[..] {
        text.push_str(&format!("| {}, and the other's default | | | | | | | {}\n", one.model, against(one, other)));
    }
    text
}

/// Questions won and lost, and the difference of the means with the range in which 95 % of the drawings lie.
fn against(choice: &Choice, default: &Choice) -> String {
    let count = |limit: usize| {
        let is_hit = |place: &Option<usize>| place.is_some_and(|place| place <= limit);
        let pairs = || choice.places.0.iter().zip(&default.places.0).map(|(a, b)| (is_hit(a), is_hit(b)));
        let (won, lost) =
            (pairs().filter(|pair| *pair == (true, false)), pairs().filter(|pair| *pair == (false, true)));
        format!("+{} −{}", won.count(), lost.count())
    };
    let differences: Vec<f64> =
        choice.places.reciprocals().zip(default.places.reciprocals()).map(|(a, b)| a - b).collect();
    let mut dice = Dice::new(8);
    let mean = |drawn: f64| drawn / differences.len() as f64;
    let drawn = (0..DRAWINGS).map(|_| mean((0..differences.len()).map(|_| *dice.pick(&differences)).sum()));
    let drawn = super::sorted(drawn.collect());
    let (low, high) = (super::percentile(&drawn, 0.025), super::percentile(&drawn, 0.975));
    let own = mean(differences.iter().sum());
    format!("| {} | {} | {own:+.3} ({low:+.3} to {high:+.3}) |", count(1), count(SHOWN))
}
