//! Random programs and edits against a model that knows no positions: every
//! instruction is an item, and jumps name the items they go to.

use std::collections::BTreeMap;

use super::*;

/// xorshift64*, so that a failure repeats.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.next(n) == 0
    }
}

/// An instruction without its place.
#[derive(Clone)]
struct Item {
    words: Vec<Insn>,
    goes: Option<Reference>,
    line: Option<u32>,
    relo: Option<u32>,
}

impl Item {
    fn plain(words: &[Insn]) -> Item {
        Item {
            words: words.to_vec(),
            goes: None,
            line: None,
            relo: None,
        }
    }

    fn to(words: &[Insn], goes: Reference) -> Item {
        Item {
            goes: Some(goes),
            ..Item::plain(words)
        }
    }
}

/// A program as items, by their old positions.
struct Model {
    items: BTreeMap<u32, (usize, Item)>,
    starts: Vec<u32>,
    entry: Vec<Vec<Item>>,
    before: BTreeMap<u32, Vec<Item>>,
    after: BTreeMap<u32, Vec<Item>>,
    /// By first position: where it ends, and what is there instead.
    instead: BTreeMap<u32, (u32, Vec<Item>)>,
}

fn random_item(random: &mut Random, function: usize, functions: usize) -> Item {
    let n = random.next(1000) as i32;
    let map = Reference::Symbol(FixupTarget::Map(0));
    let callee = Reference::Function(random.next(functions) as u32);
    // Jumps go to an item whose number is put in later.
    let jump = Reference::Jump(0);
    match random.next(14) {
        0 => Item::plain(&Insn::ld_imm64(1, 0, 1 << 40 | n as u64)),
        1 => Item::to(&Insn::ld_imm64(2, pseudo::MAP_FD, 0), map),
        2 | 3 => Item::to(&[jeq(0)], jump),
        4 => Item::to(&[Insn::jump(0)], jump),
        5 => Item::to(&[Insn::new(JA32, 0, 0, 0, 0)], jump),
        6 => Item::to(&[Insn::new(class::JMP32 | jmp::JNE, 3, 0, 0, n)], jump),
        7 => Item::to(&[Insn::new(class::JMP | jmp::JCOND, 0, 0, 0, 0)], jump),
        8 if function == 0 => Item::to(&[call(0)], callee),
        9 if function == 0 => Item::to(&address(0), callee),
        10 => Item::to(&[call(-1)], Reference::Symbol(FixupTarget::Extern(0))),
        11 => Item::plain(&[Insn::call(n)]),
        _ => Item::plain(&[mov(n)]),
    }
}

impl Model {
    fn random(random: &mut Random) -> Model {
        let functions = 1 + random.next(4);
        let mut model = Model {
            items: BTreeMap::new(),
            starts: Vec::new(),
            entry: vec![Vec::new(); functions],
            before: BTreeMap::new(),
            after: BTreeMap::new(),
            instead: BTreeMap::new(),
        };
        let mut at = 0;
        for function in 0..functions {
            model.starts.push(at);
            let first = at;
            for n in 0..=random.next(12) {
                let mut item = random_item(random, function, functions);
                if n == 0 || random.one_in(3) {
                    item.line = Some(at * 10);
                }
                if random.one_in(8) {
                    item.relo = Some(at);
                }
                let words = item.words.len() as u32;
                model.items.insert(at, (function, item));
                at += words;
            }
            let places: Vec<u32> = model.items.range(first..).map(|(at, _)| *at).collect();
            for (_, item) in model.items.range_mut(first..).map(|(_, i)| i) {
                if let Some(Reference::Jump(to)) = &mut item.goes {
                    *to = places[random.next(places.len())];
                }
            }
        }
        model
    }

    /// The words, with jumps in place.
    fn link(
        items: &[(usize, &Item)],
        labels: &BTreeMap<u32, u32>,
        starts: &[Option<u32>],
    ) -> LinkedProgram {
        let mut linked = program(&[], &[], &[]);
        let mut lines = Vec::new();
        for (function, start) in starts.iter().enumerate() {
            let Some(start) = *start else { continue };
            let function = function as u32;
            linked.placed.push(Placed { function, start });
            linked.func_info.extend(start.to_ne_bytes());
            linked.func_info.extend((100 + function).to_ne_bytes());
        }
        for (_, item) in items {
            let at = linked.insns.len() as u32;
            linked.insns.extend(&item.words);
            let to = match item.goes {
                Some(Reference::Jump(to)) => labels[&to],
                Some(Reference::Function(f)) => starts[f as usize].unwrap(),
                Some(Reference::Symbol(target)) => {
                    linked.fixups.push(Fixup { insn: at, target });
                    at + 1
                }
                None => at + 1,
            };
            let distance = to.wrapping_sub(at + 1) as i32;
            let word = &mut linked.insns[at as usize];
            match item.goes {
                Some(Reference::Jump(_)) if word.code != JA32 => word.off = distance as i16,
                Some(Reference::Jump(_) | Reference::Function(_)) => word.imm = distance,
                _ => {}
            }
            lines.extend(item.line.map(|line| (at, line)));
            linked
                .core_relos
                .extend(item.relo.map(|relo| LinkedCoreRelo {
                    insn: at,
                    record: CoreRelo {
                        insn_off: relo,
                        type_id: 1,
                        access_off: 2,
                        kind: 3,
                    },
                }));
        }
        for (at, line) in lines {
            let words = [at, 1, 2, line << 10];
            linked
                .line_info
                .extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        }
        linked
    }

    fn original(&self) -> LinkedProgram {
        let items: Vec<_> = self.items.values().map(|(f, item)| (*f, item)).collect();
        let labels = self.items.keys().map(|at| (*at, *at)).collect();
        let starts: Vec<_> = self.starts.iter().copied().map(Some).collect();
        Model::link(&items, &labels, &starts)
    }

    /// The program after the edits, or the error they must end in.
    fn edited(&self) -> Result<LinkedProgram, &'static str> {
        // What stands where, function by function.
        let mut bodies: Vec<Vec<Item>> = vec![Vec::new(); self.starts.len()];
        // By old position: function and index in its body.
        let mut labels: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        let mut pruned = false;
        for (function, body) in bodies.iter_mut().enumerate() {
            body.extend(self.entry[function].iter().cloned());
            let mut gone_until = 0;
            // The last line whose instruction is gone, for whatever follows.
            let mut gone_line = None;
            let put =
                |body: &mut Vec<Item>, item: &Item, line: Option<u32>, gone: &mut Option<u32>| {
                    let line = line.or(gone.take());
                    *gone = None;
                    let item = item.clone();
                    body.push(Item { line, ..item });
                };
            for (&at, (_, item)) in self.items.iter().filter(|(_, (f, _))| *f == function) {
                let here = body.len();
                let mut line = item.line;
                let before = self.before.get(&at).into_iter().flatten();
                let instead = self.instead.get(&at);
                for inserted in before.chain(instead.iter().flat_map(|i| &i.1)) {
                    put(body, inserted, line.take(), &mut gone_line);
                }
                gone_until = instead.map_or(gone_until, |i| i.0);
                if at >= gone_until {
                    put(body, item, line.take(), &mut gone_line);
                } else {
                    pruned |= matches!(item.goes, Some(Reference::Function(_)));
                    gone_line = line.or(gone_line);
                }
                if body.len() > here {
                    labels.insert(at, (function, here));
                }
                for inserted in self.after.get(&at).into_iter().flatten() {
                    put(body, inserted, None, &mut gone_line);
                }
            }
            // A function's first record marks its start, unless another does.
            let first = self.items[&self.starts[function]].1.line;
            for item in body.iter_mut().filter(|i| i.line == first) {
                item.line = None;
            }
            if let Some(item) = body.first_mut() {
                item.line = item.line.or(first);
            }
        }
        let mut live = vec![!pruned; bodies.len()];
        live[0] = true;
        for _ in 0..bodies.len() {
            for (function, body) in bodies.iter().enumerate() {
                if !live[function] {
                    continue;
                }
                for item in body {
                    if let Some(Reference::Function(f)) = item.goes {
                        live[f as usize] = true;
                    }
                }
            }
        }
        let mut starts = vec![None; bodies.len()];
        let mut places = BTreeMap::new();
        let mut items = Vec::new();
        let mut at = 0;
        for (function, body) in bodies.iter().enumerate().filter(|(f, _)| live[*f]) {
            if body.is_empty() {
                return Err("empty");
            }
            starts[function] = Some(at);
            for (index, item) in body.iter().enumerate() {
                places.insert((function, index), at);
                items.push((function, item));
                at += item.words.len() as u32;
            }
        }
        let labels = labels
            .iter()
            .filter_map(|(old, place)| Some((*old, *places.get(place)?)))
            .collect::<BTreeMap<_, _>>();
        for (_, item) in &items {
            if let Some(Reference::Jump(to)) = item.goes
                && !labels.contains_key(&to)
            {
                return Err("target");
            }
        }
        Ok(Model::link(&items, &labels, &starts))
    }

    /// A random change that does not contradict earlier ones, in both worlds.
    fn change(&mut self, random: &mut Random, editor: &mut ProgramEditor<'_>) {
        let places: Vec<u32> = self.items.keys().copied().collect();
        let at = places[random.next(places.len())];
        let end = |at: u32| at + self.items[&at].1.words.len() as u32;
        let function = self.items[&at].0;
        let gone = self
            .instead
            .range(..=at)
            .next_back()
            .map_or(0..0, |(start, (end, _))| *start..*end);
        match random.next(5) {
            0 if !gone.contains(&at) || gone.start == at => {
                let (items, code) = self.code(random);
                editor.insert_before(at, code).unwrap();
                self.before.entry(at).or_default().extend(items);
            }
            1 if !gone.contains(&at) || gone.end == end(at) => {
                let (items, code) = self.code(random);
                editor.insert_after(at, code).unwrap();
                self.after.entry(at).or_default().extend(items);
            }
            2 if random.one_in(3) => {
                let (items, code) = self.code(random);
                editor.prologue(function as u32, code).unwrap();
                self.entry[function].extend(items);
            }
            3 if !gone.contains(&at) => {
                // As far as nothing is in the way.
                let mut last = at;
                for _ in 0..random.next(3) {
                    let next = end(last);
                    let same = self.items.get(&next).is_some_and(|i| i.0 == function);
                    let free = !self.instead.contains_key(&next)
                        && !self.before.contains_key(&next)
                        && !self.after.contains_key(&last);
                    if same && free {
                        last = next;
                    }
                }
                let (items, code) = if random.one_in(3) {
                    (Vec::new(), Code::new())
                } else {
                    self.code(random)
                };
                let old = at..end(last);
                editor.replace(old.clone(), code).unwrap();
                self.instead.insert(at, (old.end, items));
            }
            _ => {}
        }
    }

    fn code(&self, random: &mut Random) -> (Vec<Item>, Code) {
        let places: Vec<u32> = self.items.keys().copied().collect();
        let mut items = Vec::new();
        let mut code = Code::new();
        for _ in 0..=random.next(2) {
            let n = random.next(1000) as i32;
            match random.next(7) {
                0 => {
                    let to = places[random.next(places.len())];
                    code.jump_to(jeq(77), to);
                    items.push(Item::to(&[jeq(0)], Reference::Jump(to)));
                }
                1 => {
                    let to = random.next(self.starts.len()) as u32;
                    code.call(to);
                    items.push(Item::to(&[call(0)], Reference::Function(to)));
                }
                2 => {
                    let to = random.next(self.starts.len()) as u32;
                    code.load_function(3, to);
                    items.push(Item::to(&address(0), Reference::Function(to)));
                }
                3 => {
                    code.load_map(4, 1);
                    let map = Reference::Symbol(FixupTarget::Map(1));
                    items.push(Item::to(&Insn::ld_imm64(4, pseudo::MAP_FD, 0), map));
                }
                4 => {
                    // Over the second, to whatever follows.
                    for insn in [jeq(1), mov(n)] {
                        code.push(insn);
                        items.push(Item::plain(&[insn]));
                    }
                }
                5 => {
                    code.load_constant(5, n as u64);
                    items.push(Item::plain(&Insn::ld_imm64(5, 0, n as u64)));
                }
                _ => {
                    code.push(mov(n));
                    items.push(Item::plain(&[mov(n)]));
                }
            }
        }
        (items, code)
    }
}

#[test]
fn random_edits_agree_with_the_model() {
    let linker = linker();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut good, mut bad) = (0, 0);
    for round in 0..5_000 {
        let mut model = Model::random(&mut random);
        let original = model.original();
        let mut linked = original.clone();
        let mut editor = ProgramEditor::new(&linker, &mut linked);
        for _ in 0..=random.next(8) {
            model.change(&mut random, &mut editor);
        }
        let waiting = format!("{:?}", editor.edits);
        let result = editor.apply();
        match (model.edited(), result) {
            (Ok(expected), Ok(())) => {
                assert_eq!(
                    everything(&linked),
                    everything(&expected),
                    "round {round}\n{original:?}\n{waiting}"
                );
                good += 1;
            }
            (Err("empty"), Err(PatchError::EmptyFunction { .. }))
            | (Err("target"), Err(PatchError::TargetRemoved { .. })) => {
                assert_eq!(everything(&linked), everything(&original));
                bad += 1;
            }
            (expected, result) => panic!(
                "round {round}: {result:?} instead of {:?}\n{original:?}\n{waiting}",
                expected.map(|_| ())
            ),
        }
    }
    assert!(good > 2_500 && bad > 100, "{good} {bad}");
}
