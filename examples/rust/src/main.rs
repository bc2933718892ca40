//! Real numbers from standard input, eight by eight to an image; the class of each to standard output.
use std::{ffi::c_int, ffi::c_void, io::Read};

mod model {
    include!(concat!(env!("OUT_DIR"), "/model.rs"));
}

extern "C" {
    fn model_run_f32(inputs: *const *const c_void, outputs: *const *mut c_void, arena: *mut c_void) -> c_int;
}

const INPUT: usize = model::MODEL_INPUT_0_SIZE as usize;
const OUTPUT: usize = model::MODEL_OUTPUT_0_SIZE as usize;

/// Working memory of one caller.
#[repr(align(64))]
struct Program([u8; model::MODEL_ARENA_SIZE as usize]);

impl Program {
    fn new() -> Box<Self> {
        Box::new(Program([0; model::MODEL_ARENA_SIZE as usize]))
    }

    fn run(&mut self, input: &[f32; INPUT]) -> [f32; OUTPUT] {
        let mut output = [0f32; OUTPUT];
        let inputs = [input.as_ptr().cast::<c_void>()];
        let outputs = [output.as_mut_ptr().cast::<c_void>()];
        // Safe: sizes and alignment are those of the header, and the program touches nothing else.
        let status = unsafe { model_run_f32(inputs.as_ptr(), outputs.as_ptr(), self.0.as_mut_ptr().cast()) };
        assert_eq!(status, 0);
        output
    }
}

fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let numbers: Vec<f32> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let mut program = Program::new();
    for image in numbers.chunks_exact(INPUT) {
        let scores = program.run(image.try_into().unwrap());
        let best = (0..OUTPUT).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
        println!("{best}");
    }
}
