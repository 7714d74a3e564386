// Prints what Go's text/template makes of the templates in templates.txt, as JSON:
//
//	go run main.go <templates.txt >cases.json
//
// The data are those of fn data() in ../tests.rs; the functions besides Go's own are defined as
// Podman defines them.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/template"
)

type mount struct {
	Source      string
	Destination string
	RW          bool
}

type state struct {
	Status string
	Pid    int
	Health map[string]interface{}
}

type container struct {
	ID      string
	Names   []string
	Image   string
	Pid     int
	Running bool
	Ratio   float64
	Labels  map[string]string
	Mounts  []mount
	State   state
	Extra   map[string]interface{}
	Nothing interface{}
	Empty   []string
	Blank   string
	Matrix  [][]int
}

var data = container{
	ID:      "2fc93d100b4a",
	Names:   []string{"one", "uno"},
	Image:   "localhost/busybox:latest",
	Pid:     4242,
	Running: true,
	Ratio:   0.5,
	Labels:  map[string]string{"foo": "bar", "io.buildah.version": "1.28.2", "x": "<a&b>"},
	Mounts:  []mount{{"/src", "/dst", true}, {"vol", "/data", false}},
	State:   state{"running", 7, map[string]interface{}{"Log": nil, "Streak": 3}},
	Extra:   map[string]interface{}{"n": 1, "s": "text", "list": []interface{}{"a", 2}, "nil": nil},
	Matrix:  [][]int{{1, 2}, {3}},
}

var functions = template.FuncMap{
	"json": func(v interface{}) string {
		var buffer bytes.Buffer
		encoder := json.NewEncoder(&buffer)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(v); err != nil {
			return err.Error()
		}
		return strings.TrimSpace(buffer.String())
	},
	"join":  strings.Join,
	"split": strings.Split,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"title": strings.Title,
	"pad": func(source string, prefix, suffix int) string {
		if source == "" {
			return source
		}
		return strings.Repeat(" ", prefix) + source + strings.Repeat(" ", suffix)
	},
	"truncate": func(source string, length int) string {
		if len(source) < length {
			return source
		}
		return source[:length]
	},
}

type result struct {
	Template string
	Output   string `json:",omitempty"`
	Error    string `json:",omitempty"`
}

func run(text string) result {
	parsed, err := template.New("t").Funcs(functions).Parse(text)
	if err != nil {
		return result{text, "", err.Error()}
	}
	var out bytes.Buffer
	if err := parsed.Execute(&out, data); err != nil {
		return result{text, "", err.Error()}
	}
	return result{text, out.String(), ""}
}

func main() {
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		panic(err)
	}
	fmt.Println("[")
	// One template a line; \n in a line stands for a newline in the template.
	lines := strings.Split(strings.TrimRight(string(input), "\n"), "\n")
	for index, line := range lines {
		var buffer bytes.Buffer
		encoder := json.NewEncoder(&buffer)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(run(strings.ReplaceAll(line, `\n`, "\n"))); err != nil {
			panic(err)
		}
		comma := ","
		if index == len(lines)-1 {
			comma = ""
		}
		fmt.Println(strings.TrimSpace(buffer.String()) + comma)
	}
	fmt.Println("]")
}
