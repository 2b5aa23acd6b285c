# Writes English-like text from a grammar of its own, so that the demo needs no data. The same options give the same
# bytes with every awk: the random numbers are a Lehmer generator, not rand().
#   awk -v seed=1 -v bytes=300000 -f scripts/make_text.awk              short stories, a blank line after each
#   awk -v mode=person -v seed=2 -v rows=400 -f scripts/make_text.awk   {"prompt", "completion"} rows: one person
#   ... -v prompt_key=context -v completion_key=continuation            the same rows as `thimble eval` reads them
# The person continues the beginning of a story in a manner of their own: present tense, no capitals, "and so" between
# short clauses, a favourite ending.

function random(n) {  # a whole number in 0..n-1
  state = (state * 16807) % 2147483647
  return int(state / 2147483647 * n)
}
function chance(percent) { return random(100) < percent }
function list(name, words, parts, n, i) {
  n = split(words, parts, "|")
  for (i = 1; i <= n; i++) table[name, i] = parts[i]
  size[name] = n
}
function pick(name) { return table[name, random(size[name]) + 1] }
function other(name, word, found) {  # an entry of the list that is not this one
  do found = pick(name); while (found == word)
  return found
}
function capital(text) { return toupper(substr(text, 1, 1)) substr(text, 2) }
function article(noun) { return (index("aeiou", substr(noun, 1, 1)) ? "an " : "a ") noun }
function said(speech, who, mark) {  # mark: "." or "?"
  speech = "\"" capital(speech)
  if (chance(50)) return speech (mark == "." ? "," : mark) "\" said " who "."
  return capital(who) " said, " speech mark "\""
}

# Whom and what one story is about.
function cast(row) {
  row = random(size["girl"] + size["boy"])
  if (row < size["girl"]) {
    hero = table["girl", row + 1]; she = "she"; her = "her"; object = "her"
  } else {
    hero = table["boy", row - size["girl"] + 1]; she = "he"; her = "his"; object = "him"
  }
  friend = chance(50) ? other("girl", hero) : other("boy", hero)
  animal = pick("animal"); colour = pick("colour"); thing = pick("thing")
  place = pick("place"); home = other("place", place); weather = pick("weather")
}
function opening() {
  return capital(pick("when")) ", " hero " went to the " place " with " her " " animal ". " \
         capital(she) " was looking for " article(colour " " thing) "."
}
function trouble(kind) {
  kind = random(4)
  if (kind == 0) return "Then the " weather " came, and " hero " could not see the way home."
  if (kind == 1) return "But the " thing " was not there, and " hero " was sad."
  if (kind == 2) return "The " animal " ran away and hid behind the " pick("hide") "."
  return "A " pick("adjective") " " other("animal", animal) " sat on the " thing " and would not move."
}
function help(kind) {
  kind = random(3)
  if (kind == 0) {
    return "Soon " friend " came along the road. " \
           said("do not worry, I will help you" (chance(30) ? ", my friend" : ""), friend, ".")
  }
  if (kind == 1)
    return hero " asked " friend " for help. " said("let us look near the " pick("hide"), friend, ".")
  return friend " heard " object " and came to the " place ". " said("what are you looking for", friend, "?") \
         " " said("my " colour " " thing, hero, ".")
}
function search(kind) {
  kind = random(3)
  if (kind == 0) return "They looked under the " pick("hide") " and behind the " pick("hide") "."
  if (kind == 1) return "They walked to the " home " and asked the " pick("adult") "."
  return "The " animal " followed a " pick("adjective") " smell to the " pick("hide") "."
}
function ending(kind) {
  kind = random(3)
  if (kind == 0) return "There was the " colour " " thing "! " hero " and " friend " laughed, and they all went home."
  if (kind == 1) return "At last they found the " thing " near the " home ". " hero " gave " friend " " article(pick("gift")) "."
  return "In the evening " hero " put the " colour " " thing " beside " her " bed and slept well."
}
function story(text, i) {
  cast()
  text = opening()
  if (chance(60)) text = text " The day was " pick("mood") ", and the " animal " was " pick("feeling") "."
  text = text " " capital(trouble()) " " help()
  for (i = 1 + random(2); i > 0; i--) text = text " " search()
  return text " " ending()
}

# One person's manner.
function clause(kind) {
  kind = random(5)
  if (kind == 0) return tolower(hero) " sits down by the " pick("hide")
  if (kind == 1) return "the " animal " wants " article(pick("gift"))
  if (kind == 2) return "nobody minds the " weather
  if (kind == 3) return "the " thing " turns up, as things do"
  return "we walk to the " home " and back"
}
function person_row(prompt, completion, i) {
  cast()
  prompt = opening()
  completion = " well now, " clause()
  for (i = 1 + random(2); i > 0; i--) completion = completion ", and so " clause()
  completion = completion ". " pick("closing") "."
  gsub(/"/, "\\\"", prompt)
  return "{\"" prompt_key "\": \"" prompt "\", \"" completion_key "\": \"" completion "\"}"
}

BEGIN {
  if (mode == "") mode = "stories"
  if (prompt_key == "") prompt_key = "prompt"
  if (completion_key == "") completion_key = "completion"
  if (bytes == "") bytes = 300000
  if (rows == "") rows = 200
  state = (seed * 7919 + 12345) % 2147483646 + 1
  for (i = 0; i < 20; i++) random(2)

  list("girl", "Mira|Tilda|Oona|Pia|Suri|Lena|Wanda|Nell")
  list("boy", "Bo|Anton|Ravi|Jory|Milo|Emil|Tom|Kasper")
  list("animal", "goat|cat|dog|hen|donkey|duck|mouse|hedgehog|owl|rabbit")
  list("colour", "red|green|blue|yellow|silver|orange|white|black")
  list("thing", "kite|button|lamp|spoon|boat|drum|scarf|kettle|ribbon|whistle|basket|thimble")
  list("place", "river|market|mill|harbour|forest|hill|bridge|garden|bakery|old tower")
  list("weather", "rain|fog|wind|snow|storm")
  list("when", "one morning|one day|in the spring|on Sunday|after breakfast|last winter|early in the day")
  list("hide", "stone wall|big tree|wooden door|haystack|well|stairs|empty cart|apple crates")
  list("adjective", "strange|sleepy|friendly|proud|tiny|hungry|clever")
  list("adult", "miller|baker|fisherman|teacher|old captain|gardener")
  list("gift", "apple|pear|cake|pancake|song|feather|walnut")
  list("mood", "warm and bright|cold and grey|quiet|long|windy")
  list("feeling", "happy|tired|curious|hungry|in no hurry|brave")
  list("closing", "that will do for today|no harm in it|so it goes by the water")

  if (mode == "stories") {
    for (written = 0; written < bytes; written += length(text) + 2) {
      text = story()
      print text "\n"
    }
  } else if (mode == "person") {
    for (row = 0; row < rows; row++) print person_row()
  } else {
    print "make_text: unknown mode " mode "; known are stories and person" > "/dev/stderr"
    exit 2
  }
}
