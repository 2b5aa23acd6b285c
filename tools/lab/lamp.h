// People, their histories and their questions, as the LaMP benchmark stores them (arXiv 2304.11406): an array of questions
// with a profile each, and an object of gold outputs. Every task of the lab, the synthetic world's and real ones, comes
// through these structures.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace thimble::lab {

struct Task;

// One entry of a person's history.
struct Item {
  std::string id;
  std::string date;                 // "yyyy", "yyyy-mm-dd"; empty where the file has none
  std::vector<std::string> fields;  // the values of Task::fields, in that order
};

struct Query {
  std::string id;
  std::string input;   // the whole prompt of the file
  std::string output;  // the gold answer; empty where it is not known
};

// history: oldest first (by date where there are dates, else in file order). Everything in it is older than the queries.
struct Person {
  std::string user_id;
  std::vector<Item> history;
  std::vector<Query> queries;
};

struct TaskData {
  const Task* task = nullptr;
  std::vector<Person> people;
  std::string sha256;  // of the files, or of the world's dials
};

// questions: an array of {id, input, profile, [user_id]}; outputs ("" = none): {"task", "golds": [{id, output}]}.
// task null: the one that the outputs or the profile's fields name. Questions with one user_id and one profile become one
// person; a question without user_id is a person of its own. Ids and ratings may be numbers; a sample may carry its
// output itself (LaMP's merged files). Outputs of label tasks must be one of the labels.
// Errors (input) name file, sample id and field: not an array, duplicate keys or ids, missing or empty fields, an output
// without question, a date that is none.
TaskData read_lamp(const std::string& questions, const std::string& outputs, const Task* task = nullptr);

// DIR/LaMP_k/SPLIT/{train,dev,test}_{questions,outputs}.json, or DIR/{train,dev,test}_...json itself.
TaskData read_lamp_split(const std::string& dir, const std::string& task, const std::string& split,
                         const std::string& part);

// An outputs (or predictions) file alone: its task as it stands there, and {id, output} in file order. Errors as above.
struct LampOutputs {
  std::string task;
  std::vector<std::pair<std::string, std::string>> rows;
};
LampOutputs read_lamp_outputs(const std::string& path);

// Both files, through temporary names; outputs "": the questions alone. Errors: input for a question without output.
void write_lamp(const TaskData& data, const std::string& questions, const std::string& outputs);

}  // namespace thimble::lab
