//! Finds the places of a source file where a fault can be put in, and writes the faults into it.

#![allow(clippy::wildcard_enum_match_arm, reason = "of the many kinds of syntax a few have faults")]

use std::{collections::BTreeMap, ops::Range};

use anyhow::{Context, Result};
use proc_macro2::Span;
use syn::{
    Arm, Attribute, BinOp, Block, Expr, ExprMatch, ImplItemFn, Item, ItemFn, ItemImpl, ItemMod, Lit, Pat, ReturnType,
    Signature, Stmt, Type,
    punctuated::Punctuated,
    spanned::Spanned,
    visit::{self, Visit},
};

/// One fault that can be switched on.
#[derive(Debug)]
pub(crate) struct Mutant {
    /// Says where it is and what it does: file, function, change. Unique, and the same whatever lines are above it.
    pub(crate) name: String,
    range: Range<usize>,
    prefix: Text,
    suffix: String,
}

/// Text with a place for the expression that is true while the fault is switched on.
#[derive(Debug)]
struct Text {
    before: String,
    after: String,
}

/// A file with its faults.
pub(crate) struct Source {
    file: String,
    text: String,
    pub(crate) mutants: Vec<Mutant>,
}

/// A source text with faults written into it, and which bytes each of them takes up there.
pub(crate) struct Written {
    pub(crate) text: String,
    /// What was written, and the indices into [`Source::mutants`].
    pub(crate) pieces: Vec<(Range<usize>, usize)>,
    /// For each index, all from its first piece to its last.
    pub(crate) whole: BTreeMap<usize, Range<usize>>,
}

impl Source {
    /// Parses a file, called `file` in the names; only what is in the type or module `only`, unless that is empty.
    ///
    /// # Errors
    /// When it is no Rust source.
    pub(crate) fn parse(file: &str, only: &str, text: String) -> Result<Self> {
        let parsed = syn::parse_file(&text).with_context(|| format!("parsing {file}"))?;
        let mut finder = Finder { text: &text, file, path: Vec::new(), found: Vec::new(), conditions: Vec::new() };
        finder.visit_file(&parsed);
        let mut mutants = finder.found;
        mutants.retain(|mutant| mutant.name.starts_with(&format!("{file} {only}")));
        let mut seen = BTreeMap::<String, u32>::new();
        for mutant in &mut mutants {
            let count = seen.entry(mutant.name.clone()).or_default();
            *count += 1;
            if *count > 1 {
                mutant.name = format!("{} ({count})", mutant.name);
            }
        }
        Ok(Self { file: file.to_owned(), text, mutants })
    }

    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// Writes those faults into the text that `id` has a number for: each is on while that number is the process's.
    pub(crate) fn write(&self, id: impl Fn(usize) -> Option<u32>) -> Written {
        // At one place what ends comes before what begins; the outer begins first and ends last.
        let mut marks = Vec::new();
        for (index, mutant) in self.mutants.iter().enumerate() {
            let Some(id) = id(index) else { continue };
            let prefix = format!("{}crate::mutant::on({id}){}", mutant.prefix.before, mutant.prefix.after);
            let signed = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            let Range { start, end } = mutant.range;
            marks.push((start, 1, (-signed(end), signed(index)), index, prefix));
            if !mutant.suffix.is_empty() {
                marks.push((end, 0, (-signed(start), -signed(index)), index, mutant.suffix.clone()));
            }
        }
        marks.sort();
        let (mut text, mut pieces, mut whole, mut at) = (String::new(), Vec::new(), BTreeMap::new(), 0);
        for (position, _, _, index, mark) in marks {
            text.push_str(self.text.get(at..position).unwrap_or_default());
            at = position;
            let piece = text.len()..text.len() + mark.len();
            whole.entry(index).or_insert_with(|| piece.clone()).end = piece.end;
            pieces.push((piece, index));
            text.push_str(&mark);
        }
        text.push_str(self.text.get(at..).unwrap_or_default());
        Written { text, pieces, whole }
    }
}

struct Finder<'a> {
    text: &'a str,
    file: &'a str,
    /// The modules, the type and the functions that it is in.
    path: Vec<String>,
    found: Vec<Mutant>,
    /// Conditions that have their mutants already, by where they begin and end.
    conditions: Vec<Range<usize>>,
}

impl<'a> Finder<'a> {
    fn source(&self, span: Span) -> &'a str {
        self.text.get(span.byte_range()).unwrap_or_default()
    }

    /// A line of it, for a name.
    fn short(&self, span: Span) -> String {
        let words: Vec<_> = self.source(span).split_whitespace().collect();
        let line = words.join(" ");
        match line.char_indices().nth(70) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }

    fn add(&mut self, range: Range<usize>, what: &str, before: &str, after: &str, suffix: &str) {
        let name = format!("{} {}: {what}", self.file, self.path.join("::"));
        let prefix = Text { before: before.to_owned(), after: after.to_owned() };
        self.found.push(Mutant { name, range, prefix, suffix: suffix.to_owned() });
    }

    /// Instead of `span`, if the fault is on, `other`.
    fn replace(&mut self, span: Span, what: &str, other: &str) {
        self.add(span.byte_range(), what, "(if ", &format!(" {{ {other} }} else {{ "), " })");
    }

    /// The faults of something that is true or false; `to_true`, `to_false`: which values are worth a fault.
    fn condition(&mut self, expr: &Expr, to_true: bool, to_false: bool) {
        let range = expr.span().byte_range();
        if self.conditions.contains(&range) {
            return;
        }
        self.conditions.push(range.clone());
        let text = self.short(expr.span());
        if to_false {
            let what = format!("`{text}` is false");
            if has_let(expr) {
                self.add(range.clone(), &what, "!", " && ", "");
            } else {
                self.add(range.clone(), &what, "(!", " && (", "))");
            }
        }
        if to_true && !has_let(expr) {
            self.add(range, &format!("`{text}` is true"), "(", " || (", "))");
        }
        self.operands(expr);
    }

    fn operands(&mut self, expr: &Expr) {
        let is_and = match expr {
            Expr::Paren(inner) => return self.operands(&inner.expr),
            Expr::Binary(binary) => matches!(binary.op, BinOp::And(_)),
            _ => return,
        };
        let mut operands = Vec::new();
        flatten(expr, is_and, &mut operands);
        if operands.len() < 2 {
            return;
        }
        for operand in operands {
            if !matches!(operand, Expr::Let(_)) {
                self.condition(operand, is_and, !is_and);
            }
        }
    }

    fn function(&mut self, signature: &Signature, block: &Block) {
        let start = block.brace_token.span.open().byte_range().end;
        for value in values(&signature.output) {
            let what = if value.is_empty() { "returns at once".to_owned() } else { format!("returns {value}") };
            self.add(start..start, &what, " if ", &format!(" {{ return {value}; }}"), "");
        }
        // The last call of a function without a result is a statement like the others.
        if let (ReturnType::Default, Some(Stmt::Expr(expr @ (Expr::Call(_) | Expr::MethodCall(_)), None))) =
            (&signature.output, block.stmts.last())
        {
            self.remove(expr.span());
        }
    }

    fn remove(&mut self, span: Span) {
        let what = format!("no `{}`", self.short(span));
        self.add(span.byte_range(), &what, " if !", " { ", " }");
    }

    /// Each alternative of each arm is treated as if it were in another arm: the one for the rest, or the next that does something else.
    fn arms(&mut self, expr: &ExprMatch) {
        let rest = expr.arms.iter().position(|arm| matches!(arm.pat, Pat::Wild(_)));
        for (index, arm) in expr.arms.iter().enumerate() {
            let differs = |other: &&Arm| {
                !other.attrs.iter().any(is_cfg) && self.source(arm.body.span()) != self.source(other.body.span())
            };
            let rest = rest.and_then(|rest| expr.arms.get(rest)).filter(differs);
            let next = expr.arms.iter().cycle().skip(index + 1).take(expr.arms.len()).find(differs);
            if let Some(other) = rest.or(next)
                && !arm.attrs.iter().any(is_cfg)
            {
                self.arm(arm, other);
            }
        }
    }

    fn arm(&mut self, arm: &Arm, other: &Arm) {
        let (pattern, guard) = match &arm.pat {
            Pat::Guard(guarded) => (&*guarded.pat, format!(" && ({})", self.source(guarded.guard.span()))),
            pattern => (pattern, String::new()),
        };
        let body = self.source(other.body.span());
        let start = arm.span().byte_range().start;
        let mut alternatives = Alternatives(Vec::new());
        alternatives.visit_pat(pattern);
        let whole = pattern.span().byte_range();
        let mut patterns = Vec::new();
        for (or, case) in alternatives.0 {
            let (or, case) = (or.byte_range(), self.source(case));
            let (before, after) = (self.text.get(whole.start..or.start), self.text.get(or.end..whole.end));
            patterns.push(format!("{}{case}{}", before.unwrap_or_default(), after.unwrap_or_default()));
        }
        if patterns.is_empty() {
            patterns.push(self.source(pattern.span()).to_owned());
        }
        for pattern in patterns {
            let what = format!(
                "`{}` does `{}`",
                pattern.split_whitespace().collect::<Vec<_>>().join(" "),
                self.short(other.body.span())
            );
            self.add(start..start, &what, &format!("{pattern} if "), &format!("{guard} => {{ {body} }}\n"), "");
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            // Nothing in them runs.
            _ => return,
        };
        if !attributes.iter().any(is_cfg) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.path.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.path.pop();
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let last = |path: &syn::Path| path.segments.last().map(|segment| segment.ident.to_string());
        let of = item.trait_.as_ref().and_then(|(path, _)| last(path));
        // What a debugger shows is nobody's business.
        if of.as_deref() == Some("Debug") {
            return;
        }
        let name = match &*item.self_ty {
            Type::Path(path) => last(&path.path),
            _ => None,
        };
        self.path.push(name.unwrap_or_default());
        visit::visit_item_impl(self, item);
        self.path.pop();
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        if item.sig.constness.is_some() {
            return;
        }
        self.path.push(item.sig.ident.to_string());
        self.function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
        self.path.pop();
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        if item.sig.constness.is_some() || item.attrs.iter().any(is_cfg) {
            return;
        }
        self.path.push(item.sig.ident.to_string());
        self.function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
        self.path.pop();
    }

    fn visit_stmt(&mut self, stmt: &'ast Stmt) {
        if let Stmt::Expr(expr, end) = stmt {
            let removable = match expr {
                Expr::Assign(_) | Expr::Call(_) | Expr::MethodCall(_) => end.is_some(),
                Expr::Binary(binary) => is_assignment(&binary.op),
                Expr::ForLoop(_) => true,
                _ => false,
            };
            if removable {
                self.remove(stmt.span());
            }
        }
        visit::visit_stmt(self, stmt);
    }

    fn visit_expr(&mut self, expr: &'ast Expr) {
        match expr {
            Expr::If(expr) => self.condition(&expr.cond, true, true),
            Expr::While(expr) => self.condition(&expr.cond, false, true),
            Expr::Match(expr) => self.arms(expr),
            // It compiles where the call has no result.
            Expr::Closure(closure) if matches!(&*closure.body, Expr::Call(_) | Expr::MethodCall(_)) => {
                self.remove(closure.body.span());
            }
            Expr::Lit(literal) => {
                if let Lit::Bool(value) = &literal.lit {
                    self.replace(expr.span(), &format!("`{}` is inverted", value.value), &format!("{}", !value.value));
                }
            }
            Expr::Binary(binary) => {
                let known = self.conditions.contains(&expr.span().byte_range());
                if matches!(binary.op, BinOp::And(_) | BinOp::Or(_)) {
                    self.condition(expr, true, true);
                } else if let Some(other) = other_operator(&binary.op, known) {
                    let (left, right) = (self.source(binary.left.span()), self.source(binary.right.span()));
                    let what = format!("{other} in `{}`", self.short(expr.span()));
                    self.replace(expr.span(), &what, &format!("{left} {other} {right}"));
                }
            }
            Expr::MethodCall(call) => {
                let method = call.method.to_string();
                if ["min", "max", "filter", "saturating_sub"].contains(&method.as_str()) && call.args.len() == 1 {
                    let argument = call.args.first().map_or("", |argument| self.source(argument.span()));
                    let what = format!("no .{method}({})", argument.split_whitespace().collect::<Vec<_>>().join(" "));
                    let receiver = self.source(call.receiver.span());
                    self.replace(expr.span(), &what, receiver);
                }
            }
            _ => {}
        }
        visit::visit_expr(self, expr);
    }

    fn visit_pat(&mut self, pat: &'ast Pat) {
        // A pattern is not run, its guard is.
        if let Pat::Guard(guarded) = pat {
            self.condition(&guarded.guard, true, true);
            self.visit_expr(&guarded.guard);
        }
    }

    // Lengths of arrays, attributes and macros' tokens are not expressions that run.
    fn visit_type(&mut self, _: &'ast Type) {}
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
    fn visit_macro(&mut self, _: &'ast syn::Macro) {}
}

/// The patterns with alternatives, and each of these.
struct Alternatives(Vec<(Span, Span)>);

impl<'ast> Visit<'ast> for Alternatives {
    fn visit_pat_or(&mut self, or: &'ast syn::PatOr) {
        let cases: &Punctuated<Pat, _> = &or.cases;
        self.0.extend(cases.iter().map(|case| (or.span(), case.span())));
    }
}

/// The parts that `&&` (or `||`) joins.
fn flatten<'a>(expr: &'a Expr, and: bool, parts: &mut Vec<&'a Expr>) {
    match expr {
        Expr::Binary(binary) if matches!((&binary.op, and), (BinOp::And(_), true) | (BinOp::Or(_), false)) => {
            flatten(&binary.left, and, parts);
            flatten(&binary.right, and, parts);
        }
        expr => parts.push(expr),
    }
}

fn has_let(expr: &Expr) -> bool {
    let mut parts = Vec::new();
    flatten(expr, true, &mut parts);
    parts.iter().any(|part| matches!(part, Expr::Let(_)))
}

/// What a function may return at once, as text; a value that does not fit its type does not compile and is left out.
fn values(output: &ReturnType) -> &'static [&'static str] {
    let ReturnType::Type(_, output) = output else { return &[""] };
    let Type::Path(path) = &**output else { return &[] };
    let Some(last) = path.path.segments.last() else { return &[] };
    match last.ident.to_string().as_str() {
        "bool" => &["true", "false"],
        "u8" | "u16" | "u32" | "u64" | "usize" => &["0", "1"],
        "Option" => &["None"],
        "Result" => &["Ok(Default::default())"],
        "Poll" => &["std::task::Poll::Pending"],
        "Self" => &[],
        _ => &["Default::default()"],
    }
}

fn is_assignment(op: &BinOp) -> bool {
    use BinOp::{AddAssign, BitAndAssign, BitOrAssign, BitXorAssign, DivAssign, MulAssign, SubAssign};
    matches!(
        op,
        AddAssign(_) | SubAssign(_) | MulAssign(_) | DivAssign(_) | BitAndAssign(_) | BitOrAssign(_) | BitXorAssign(_)
    )
}

/// The operator that is taken for this one by mistake. Of a condition, which is made true and false anyway, none is inverted.
fn other_operator(op: &BinOp, condition: bool) -> Option<&'static str> {
    Some(match op {
        BinOp::Lt(_) => "<=",
        BinOp::Le(_) => "<",
        BinOp::Gt(_) => ">=",
        BinOp::Ge(_) => ">",
        BinOp::Eq(_) if !condition => "!=",
        BinOp::Ne(_) if !condition => "==",
        BinOp::Add(_) => "-",
        BinOp::Sub(_) => "+",
        BinOp::Mul(_) => "/",
        BinOp::Div(_) => "*",
        BinOp::BitAnd(_) => "|",
        BinOp::BitOr(_) => "&",
        _ => return None,
    })
}

fn is_cfg(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") || attribute.path().is_ident("test")
}

#[cfg(test)]
mod tests;
