//! Makes a compiled filter smaller without changing what it does.
//!
//! libseccomp tests system call numbers one by one: some 1400 instructions for the default profile,
//! which the kernel checks, translates and runs for every number it may ever see whenever the
//! filter is loaded: 0.35 ms of each start. But neighbouring numbers mostly share their verdict, so
//! a search tree over ranges does with a quarter of it.
//!
//! The program is taken as the truth. A verdict that depends on architecture and number alone is
//! found by running the program; the numbers where it can change are those the program compares
//! with. Where it looks at arguments, those of its instructions that can still be reached are
//! copied. A program of any other form than libseccomp's stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use selkie_sys::seccomp::Instruction;

/// `BPF_LD | BPF_W | BPF_ABS`: A = word `k` of `struct seccomp_data`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`.
const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
const IF_GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const IF_AT_LEAST: u16 = 0x35;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const IF_BITS: u16 = 0x45;
/// `BPF_ALU | BPF_AND | BPF_K`.
const AND: u16 = 0x54;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// `offsetof(struct seccomp_data, nr)` and `arch`; arguments come after.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// The same filter, smaller; or the same program when it cannot be made so.
pub(super) fn compact(program: Vec<Instruction>) -> Vec<Instruction> {
    match Analysis::of(&program).and_then(|analysis| analysis.rewrite()) {
        Some(smaller) if smaller.len() < program.len() => smaller,
        _ => program,
    }
}

/// What A holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Loaded {
    Nothing,
    Number,
    Architecture,
}

/// What a number comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// This return value.
    Return(u32),
    /// The instructions from this index on decide by arguments.
    Arguments(usize),
}

struct Analysis<'a> {
    program: &'a [Instruction],
    /// Architectures told apart.
    architectures: BTreeSet<u32>,
    /// First numbers of the ranges within which no comparison changes.
    starts: BTreeSet<u32>,
}

impl<'a> Analysis<'a> {
    /// Collects what the program compares with, on all ways to a return or an argument.
    fn of(program: &'a [Instruction]) -> Option<Self> {
        let mut analysis = Self {
            program,
            architectures: BTreeSet::new(),
            starts: BTreeSet::from([0]),
        };
        let mut seen = BTreeSet::new();
        let mut todo = vec![(0usize, Loaded::Nothing)];
        while let Some((at, loaded)) = todo.pop() {
            if !seen.insert((at, loaded)) {
                continue;
            }
            let instruction = program.get(at)?;
            match (instruction.code, loaded) {
                (RETURN, _) => {}
                (LOAD, _) => match instruction.k {
                    NUMBER => todo.push((at + 1, Loaded::Number)),
                    ARCHITECTURE => todo.push((at + 1, Loaded::Architecture)),
                    _ => {}
                },
                (JUMP, _) => todo.push((at + 1 + instruction.k as usize, loaded)),
                (IF_EQUAL, Loaded::Architecture) => {
                    analysis.architectures.insert(instruction.k);
                    todo.extend(branches(at, instruction).map(|next| (next, loaded)));
                }
                (IF_EQUAL | IF_GREATER | IF_AT_LEAST, Loaded::Number) => {
                    analysis.starts.insert(instruction.k);
                    analysis.starts.extend(instruction.k.checked_add(1));
                    todo.extend(branches(at, instruction).map(|next| (next, loaded)));
                }
                _ => return None,
            }
        }
        Some(analysis)
    }

    /// Runs the program for one architecture and number.
    fn verdict(&self, architecture: u32, number: u32) -> Option<Verdict> {
        let (mut at, mut a) = (0, 0);
        // Jumps only go forward, so this ends.
        loop {
            let instruction = self.program.get(at)?;
            let k = instruction.k;
            let branch = |taken| Some(next_of(at, instruction, taken));
            at = match instruction.code {
                RETURN => return Some(Verdict::Return(k)),
                LOAD if k == NUMBER || k == ARCHITECTURE => {
                    a = if k == NUMBER { number } else { architecture };
                    at + 1
                }
                LOAD => return Some(Verdict::Arguments(at)),
                JUMP => at + 1 + k as usize,
                IF_EQUAL => branch(a == k)?,
                IF_GREATER => branch(a > k)?,
                IF_AT_LEAST => branch(a >= k)?,
                _ => return None,
            };
        }
    }

    /// First number and verdict of each range, for one architecture.
    fn ranges(&self, architecture: u32) -> Option<Vec<(u32, Verdict)>> {
        let mut ranges: Vec<(u32, Verdict)> = Vec::new();
        for &start in &self.starts {
            let verdict = self.verdict(architecture, start)?;
            if ranges.last().is_none_or(|(_, last)| *last != verdict) {
                ranges.push((start, verdict));
            }
        }
        Some(ranges)
    }

    fn rewrite(&self) -> Option<Vec<Instruction>> {
        // Any other architecture goes one way: no comparison tells it from this one.
        let other = (0..).find(|number| !self.architectures.contains(number))?;
        let mut writer = Writer::default();
        let mut entry = writer.architecture(self, other)?;
        for &architecture in &self.architectures {
            let own = writer.architecture(self, architecture)?;
            entry = writer.branch(IF_EQUAL, architecture, own, entry);
        }
        writer.follow(entry);
        writer.emit(LOAD, ARCHITECTURE, 0, 0);
        writer.reversed.reverse();
        Some(writer.reversed)
    }

    /// Indices that can be reached from `start`, which must not test anything but arguments in
    /// ways we copy.
    fn reachable(&self, start: usize) -> Option<BTreeSet<usize>> {
        let mut reached = BTreeSet::new();
        let mut todo = vec![start];
        while let Some(at) = todo.pop() {
            if !reached.insert(at) {
                continue;
            }
            let instruction = self.program.get(at)?;
            match instruction.code {
                RETURN => {}
                LOAD | AND => todo.push(at + 1),
                JUMP => todo.push(at + 1 + instruction.k as usize),
                IF_EQUAL | IF_GREATER | IF_AT_LEAST | IF_BITS => {
                    todo.extend(branches(at, instruction));
                }
                _ => return None,
            }
        }
        Some(reached)
    }
}

fn next_of(at: usize, instruction: &Instruction, taken: bool) -> usize {
    let skip = if taken {
        instruction.jt
    } else {
        instruction.jf
    };
    at + 1 + usize::from(skip)
}

fn branches(at: usize, instruction: &Instruction) -> impl Iterator<Item = usize> + use<> {
    [
        next_of(at, instruction, true),
        next_of(at, instruction, false),
    ]
    .into_iter()
}

/// Places in [`Writer::reversed`].
type Place = usize;

/// Writes a program from its end to its start, since jumps only go forward.
#[derive(Default)]
struct Writer {
    /// Last instruction first.
    reversed: Vec<Instruction>,
    /// The latest place of each verdict.
    verdicts: BTreeMap<Verdict, Place>,
    /// Copies of instructions of the old program.
    copied: BTreeMap<usize, Place>,
}

/// Farthest a conditional jump reaches, less room for two instructions put in between.
const REACH: usize = 255 - 2;

impl Writer {
    fn emit(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Place {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.reversed.len() - 1
    }

    /// Instructions between the next one written and `place`.
    fn distance(&self, place: Place) -> usize {
        self.reversed.len() - place - 1
    }

    /// Lets what is written next run on into `place`.
    fn follow(&mut self, place: Place) {
        let distance = self.distance(place);
        if distance > 0 {
            self.emit(JUMP, distance as u32, 0, 0);
        }
    }

    /// `place`, or a jump to it that is near enough.
    fn near(&mut self, place: Place) -> Place {
        match self.distance(place) {
            distance if distance > REACH => self.emit(JUMP, distance as u32, 0, 0),
            _ => place,
        }
    }

    fn branch(&mut self, code: u16, k: u32, then: Place, otherwise: Place) -> Place {
        let then = self.near(then);
        let otherwise = self.near(otherwise);
        let (jt, jf) = (self.distance(then), self.distance(otherwise));
        self.emit(code, k, jt as u8, jf as u8)
    }

    /// The part for one architecture.
    fn architecture(&mut self, analysis: &Analysis<'_>, architecture: u32) -> Option<Place> {
        let ranges = analysis.ranges(architecture)?;
        if let [(_, verdict)] = ranges[..] {
            return self.leaf(analysis, verdict);
        }
        let tree = self.tree(analysis, &ranges)?;
        self.follow(tree);
        Some(self.emit(LOAD, NUMBER, 0, 0))
    }

    fn tree(&mut self, analysis: &Analysis<'_>, ranges: &[(u32, Verdict)]) -> Option<Place> {
        if let [(_, verdict)] = ranges {
            return self.leaf(analysis, *verdict);
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let above = self.tree(analysis, high)?;
        let below = self.tree(analysis, low)?;
        Some(self.branch(IF_AT_LEAST, high[0].0, above, below))
    }

    fn leaf(&mut self, analysis: &Analysis<'_>, verdict: Verdict) -> Option<Place> {
        if let Some(&place) = self.verdicts.get(&verdict)
            && self.distance(place) <= REACH
        {
            return Some(place);
        }
        let place = match verdict {
            Verdict::Return(value) => self.emit(RETURN, value, 0, 0),
            Verdict::Arguments(start) => self.copy(analysis, start)?,
        };
        self.verdicts.insert(verdict, place);
        Some(place)
    }

    /// Copies what `start` can reach; what is there already is not copied again.
    fn copy(&mut self, analysis: &Analysis<'_>, start: usize) -> Option<Place> {
        for at in analysis.reachable(start)?.into_iter().rev() {
            if self.copied.contains_key(&at) {
                continue;
            }
            let old = &analysis.program[at];
            let copied = |writer: &Self, at: usize| writer.copied.get(&at).copied();
            let place = match old.code {
                RETURN => self.emit(RETURN, old.k, 0, 0),
                LOAD | AND => {
                    let next = copied(self, at + 1)?;
                    self.follow(next);
                    self.emit(old.code, old.k, 0, 0)
                }
                // A jump is the place it goes to.
                JUMP => copied(self, at + 1 + old.k as usize)?,
                code => {
                    let then = copied(self, next_of(at, old, true))?;
                    let otherwise = copied(self, next_of(at, old, false))?;
                    self.branch(code, old.k, then, otherwise)
                }
            };
            self.copied.insert(at, place);
        }
        self.copied.get(&start).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a filter as the kernel would.
    fn run(program: &[Instruction], data: &[u32; 16]) -> u32 {
        let (mut at, mut a) = (0, 0u32);
        loop {
            let i = &program[at];
            at += 1;
            let taken = match i.code {
                LOAD => {
                    a = data[i.k as usize / 4];
                    continue;
                }
                AND => {
                    a &= i.k;
                    continue;
                }
                JUMP => {
                    at += i.k as usize;
                    continue;
                }
                RETURN => return i.k,
                IF_EQUAL => a == i.k,
                IF_GREATER => a > i.k,
                IF_AT_LEAST => a >= i.k,
                IF_BITS => a & i.k != 0,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if taken { i.jt } else { i.jf });
        }
    }

    fn data(architecture: u32, number: u32, argument: u64) -> [u32; 16] {
        let mut data = [0; 16];
        (data[0], data[1]) = (number, architecture);
        for pair in data[4..].chunks_exact_mut(2) {
            (pair[0], pair[1]) = (argument as u32, (argument >> 32) as u32);
        }
        data
    }

    const ARCHITECTURES: [u32; 4] = [0xc000_003e, 0x4000_0003, 0xc000_00b7, 7];

    fn default_program() -> Vec<Instruction> {
        let rules = crate::seccomp_profile::default_profile(&|_| false);
        let bytes = super::super::compile(&rules).unwrap();
        super::super::decode(&bytes).unwrap()
    }

    #[test]
    fn the_default_profile_shrinks_and_stays_the_same() {
        let program = default_program();
        let smaller = compact(program.clone());
        assert!(
            smaller.len() * 3 < program.len(),
            "{} of {}",
            smaller.len(),
            program.len()
        );
        // Clone flags, socket families, personalities, and the like.
        let arguments = [
            0,
            1,
            8,
            16,
            38,
            40,
            0x2000_0000,
            0x1_0000_0000,
            0xffff_ffff,
            u64::MAX,
        ];
        for architecture in ARCHITECTURES {
            let numbers = (0..600).chain(0x4000_0000 - 3..0x4000_0000 + 600);
            for number in numbers.chain([u32::MAX - 1, u32::MAX]) {
                for argument in arguments {
                    let data = data(architecture, number, argument);
                    assert_eq!(run(&program, &data), run(&smaller, &data), "{data:x?}");
                }
            }
        }
    }

    #[test]
    fn other_programs_are_left_alone() {
        let load = |k| Instruction {
            code: LOAD,
            jt: 0,
            jf: 0,
            k,
        };
        let give = |k| Instruction {
            code: RETURN,
            jt: 0,
            jf: 0,
            k,
        };
        let bits = Instruction {
            code: IF_BITS,
            jt: 0,
            jf: 1,
            k: 1,
        };
        for program in [
            vec![load(NUMBER), bits, give(1), give(2)],
            vec![load(NUMBER)],
            vec![
                Instruction {
                    code: 0x87,
                    jt: 0,
                    jf: 0,
                    k: 0,
                },
                give(0),
            ],
            vec![],
        ] {
            assert_eq!(compact(program.clone()), program);
        }
    }

    proptest! {
        #[test]
        fn any_profile_stays_the_same(
            allowed in proptest::collection::btree_set(0u32..470, 0..200),
            conditional in proptest::collection::btree_set(0u32..470, 0..10),
            probes in proptest::collection::vec((0u32..480, any::<u64>()), 200),
        ) {
            use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
            let mut filter = ScmpFilterContext::new(ScmpAction::Errno(1)).unwrap();
            filter.add_arch(ScmpArch::native()).unwrap();
            for number in &allowed {
                filter.add_rule(ScmpAction::Allow, ScmpSyscall::from(*number as i32)).unwrap();
            }
            for number in conditional.difference(&allowed) {
                let equal = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(0xff), 5);
                let syscall = ScmpSyscall::from(*number as i32);
                filter.add_rule_conditional(ScmpAction::Allow, syscall, &[equal]).unwrap();
            }
            let bytes = super::super::export(&filter).unwrap();
            let program = super::super::decode(&bytes).unwrap();
            let smaller = compact(program.clone());
            for architecture in ARCHITECTURES {
                for (number, argument) in &probes {
                    for argument in [*argument, 5] {
                        let data = data(architecture, *number, argument);
                        prop_assert_eq!(run(&program, &data), run(&smaller, &data));
                    }
                }
            }
        }
    }
}
