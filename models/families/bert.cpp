// Encoders: BERT (MiniLM, Contriever, BGE, E5 ... use its name), RoBERTa and XLM-RoBERTa, DistilBERT. Bidirectional,
// LayerNorm behind each branch and behind the embeddings, learned positions, biases everywhere, no head. What a checkpoint
// has for masked tokens or next sentences beside the encoder is not read.
#include <deque>

#include "models/families.h"
#include "tensor/error.h"

namespace thimble {
namespace {

void common(const JsonObject& json, ModelConfig* c) {
  c->norm = NormKind::layer;
  c->norm_eps = json.get_double("layer_norm_eps", 1e-12, 0, 1);
  c->post_norm = c->embed_norm = c->bidirectional = true;
  c->final_norm = c->has_head = c->gated_mlp = false;
  c->qkv_bias = c->o_bias = c->mlp_bias = true;
  c->positions = PositionKind::learned;
}

void refuse(const JsonObject& json, const char* key, const char* why) {
  throw Error(ErrorCode::unsupported, json.file() + ": field \"" + key + "\": " + why, "use an encoder with absolute positions");
}

void parse_bert(const JsonObject& json, ModelConfig* c) {
  common(json, c);
  c->vocab_size = json.require_int("vocab_size", 1, kMaxDim);
  c->hidden = json.require_int("hidden_size", 1, kMaxDim);
  c->intermediate = json.require_int("intermediate_size", 1, kMaxDim);
  c->n_layers = json.require_int("num_hidden_layers", 1, 4096);
  c->n_heads = json.require_int("num_attention_heads", 1, 1 << 16);
  c->max_positions = json.get_int("max_position_embeddings", 512, 1, kMaxDim);
  c->token_types = json.get_int("type_vocab_size", 2, 1, kMaxDim);
  c->activation = parse_activation(json, "hidden_act", "gelu");
  c->pooler = true;  // the loader looks whether the file has it
  if (json.get_string("position_embedding_type", "absolute") != "absolute")
    refuse(json, "position_embedding_type", "only absolute positions are supported");
  if (json.get_bool("is_decoder", false)) refuse(json, "is_decoder", "a decoder with BERT's layers is not supported");
  if (json.get_bool("add_cross_attention", false)) refuse(json, "add_cross_attention", "cross attention is not supported");
}

// The first positions of the table belong to padding, also where it stands inside a text.
void parse_roberta(const JsonObject& json, ModelConfig* c) {
  parse_bert(json, c);
  c->placeless_id = static_cast<int32_t>(json.get_int("pad_token_id", 1, 0, kMaxDim));
  c->position_offset = c->placeless_id + 1;
  if (c->max_positions <= c->position_offset) json.fail("max_position_embeddings", "more positions than padding takes");
  c->max_positions -= c->position_offset;
}

void parse_distilbert(const JsonObject& json, ModelConfig* c) {
  common(json, c);
  c->norm_eps = 1e-12;
  c->vocab_size = json.require_int("vocab_size", 1, kMaxDim);
  c->hidden = json.get_int("dim", 768, 1, kMaxDim);
  c->intermediate = json.get_int("hidden_dim", 4 * c->hidden, 1, 4 * kMaxDim);
  c->n_layers = json.get_int("n_layers", 6, 1, 4096);
  c->n_heads = json.get_int("n_heads", 12, 1, 1 << 16);
  c->max_positions = json.get_int("max_position_embeddings", 512, 1, kMaxDim);
  c->activation = parse_activation(json, "activation", "gelu");
}

struct Name {
  const char* name;
  Role role;
};

// The rules point to names that stay.
std::vector<TensorRule> rules(const std::string& prefix, const std::vector<Name>& names) {
  static std::deque<std::string> kept;
  std::vector<TensorRule> list;
  for (const Name& n : names) {
    kept.push_back(prefix + n.name);
    list.push_back({kept.back().c_str(), Layout::plain, {n.role}});
  }
  return list;
}

std::vector<TensorRule> bert_rules(const std::string& prefix) {
  return rules(prefix, {
                           {"embeddings.word_embeddings.weight", Role::token_embed},
                           {"embeddings.position_embeddings.weight", Role::pos_embed},
                           {"embeddings.token_type_embeddings.weight", Role::token_type_embed},
                           {"embeddings.LayerNorm.weight", Role::embed_norm_w},
                           {"embeddings.LayerNorm.bias", Role::embed_norm_b},
                           {"encoder.layer.{}.attention.self.query.weight", Role::q_w},
                           {"encoder.layer.{}.attention.self.query.bias", Role::q_b},
                           {"encoder.layer.{}.attention.self.key.weight", Role::k_w},
                           {"encoder.layer.{}.attention.self.key.bias", Role::k_b},
                           {"encoder.layer.{}.attention.self.value.weight", Role::v_w},
                           {"encoder.layer.{}.attention.self.value.bias", Role::v_b},
                           {"encoder.layer.{}.attention.output.dense.weight", Role::o_w},
                           {"encoder.layer.{}.attention.output.dense.bias", Role::o_b},
                           {"encoder.layer.{}.attention.output.LayerNorm.weight", Role::norm1_w},
                           {"encoder.layer.{}.attention.output.LayerNorm.bias", Role::norm1_b},
                           {"encoder.layer.{}.intermediate.dense.weight", Role::up_w},
                           {"encoder.layer.{}.intermediate.dense.bias", Role::up_b},
                           {"encoder.layer.{}.output.dense.weight", Role::down_w},
                           {"encoder.layer.{}.output.dense.bias", Role::down_b},
                           {"encoder.layer.{}.output.LayerNorm.weight", Role::norm2_w},
                           {"encoder.layer.{}.output.LayerNorm.bias", Role::norm2_b},
                           {"pooler.dense.weight", Role::pooler_w},
                           {"pooler.dense.bias", Role::pooler_b},
                       });
}

std::vector<TensorRule> distilbert_rules() {
  return rules("distilbert.", {
                                  {"embeddings.word_embeddings.weight", Role::token_embed},
                                  {"embeddings.position_embeddings.weight", Role::pos_embed},
                                  {"embeddings.LayerNorm.weight", Role::embed_norm_w},
                                  {"embeddings.LayerNorm.bias", Role::embed_norm_b},
                                  {"transformer.layer.{}.attention.q_lin.weight", Role::q_w},
                                  {"transformer.layer.{}.attention.q_lin.bias", Role::q_b},
                                  {"transformer.layer.{}.attention.k_lin.weight", Role::k_w},
                                  {"transformer.layer.{}.attention.k_lin.bias", Role::k_b},
                                  {"transformer.layer.{}.attention.v_lin.weight", Role::v_w},
                                  {"transformer.layer.{}.attention.v_lin.bias", Role::v_b},
                                  {"transformer.layer.{}.attention.out_lin.weight", Role::o_w},
                                  {"transformer.layer.{}.attention.out_lin.bias", Role::o_b},
                                  {"transformer.layer.{}.sa_layer_norm.weight", Role::norm1_w},
                                  {"transformer.layer.{}.sa_layer_norm.bias", Role::norm1_b},
                                  {"transformer.layer.{}.ffn.lin1.weight", Role::up_w},
                                  {"transformer.layer.{}.ffn.lin1.bias", Role::up_b},
                                  {"transformer.layer.{}.ffn.lin2.weight", Role::down_w},
                                  {"transformer.layer.{}.ffn.lin2.bias", Role::down_b},
                                  {"transformer.layer.{}.output_layer_norm.weight", Role::norm2_w},
                                  {"transformer.layer.{}.output_layer_norm.bias", Role::norm2_b},
                              });
}

// Checkpoints converted from TensorFlow.
const std::vector<NameAlias> kNormAliases = {{".LayerNorm.weight", ".LayerNorm.gamma"}, {".LayerNorm.bias", ".LayerNorm.beta"}};

}  // namespace

const Family kBertFamily = {
    {"bert"},
    {"BertModel", "BertForMaskedLM", "BertForPreTraining"},
    parse_bert,
    bert_rules("bert."),
    "bert.",
    {".embeddings.position_ids", ".cls.predictions.bias", ".cls.predictions.transform.dense.weight", ".cls.predictions.transform.dense.bias",
     ".cls.predictions.transform.LayerNorm.weight", ".cls.predictions.transform.LayerNorm.bias", ".cls.predictions.transform.LayerNorm.gamma",
     ".cls.predictions.transform.LayerNorm.beta", ".cls.predictions.decoder.weight", ".cls.predictions.decoder.bias",
     ".cls.seq_relationship.weight", ".cls.seq_relationship.bias"},
    kNormAliases};

const Family kRobertaFamily = {
    {"roberta", "xlm-roberta", "camembert"},
    {"RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM", "CamembertModel"},
    parse_roberta,
    bert_rules("roberta."),
    "roberta.",
    {".embeddings.position_ids", ".lm_head.bias", ".lm_head.dense.weight", ".lm_head.dense.bias", ".lm_head.layer_norm.weight",
     ".lm_head.layer_norm.bias", ".lm_head.decoder.weight", ".lm_head.decoder.bias"},
    kNormAliases};

const Family kDistilbertFamily = {
    {"distilbert"},
    {"DistilBertModel", "DistilBertForMaskedLM"},
    parse_distilbert,
    distilbert_rules(),
    "distilbert.",
    {".embeddings.position_ids", ".vocab_transform.weight", ".vocab_transform.bias", ".vocab_layer_norm.weight", ".vocab_layer_norm.bias",
     ".vocab_projector.weight", ".vocab_projector.bias"},
    kNormAliases};

}  // namespace thimble
