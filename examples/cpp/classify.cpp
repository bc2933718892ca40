// C++20: the class that the compiler writes beside the C header. Real numbers from standard input, the scores to standard output.
//
//     c++ -std=c++20 -I build/digits examples/cpp/classify.cpp build/digits/model.a -o classify
#include <algorithm>
#include <array>
#include <iostream>

#include "model.hpp"

int main() {
    model::Program program;  // owns its arena
    std::array<float, model::Program::Input0Real::extent> image;
    std::array<float, model::Program::Output0Real::extent> scores;
    while (std::all_of(image.begin(), image.end(), [](float &x) { return static_cast<bool>(std::cin >> x); })) {
        program.run_f32(image, scores);
        std::cout << std::max_element(scores.begin(), scores.end()) - scores.begin() << '\n';
    }
}
