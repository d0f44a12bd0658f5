// Renders a Helm chart as `helm template` does, with what Debian packages: Go's text/template and the sprig functions,
// which Helm's own templates are made of. It is for machines without helm, and for the test that deploy/manifests is what
// the chart renders. Charts with dependencies, hooks, CRDs or `lookup` in a cluster are beyond it.
//
// deploy/render.sh builds and calls it.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/semver"
	"github.com/Masterminds/sprig"
	"sigs.k8s.io/yaml"
)

type values = map[string]interface{}

// The order in which helm installs kinds, as far as a chart of ours has them. What is not named comes last.
var order = []string{
	"PriorityClass", "Namespace", "NetworkPolicy", "ResourceQuota", "ServiceAccount", "Secret", "ConfigMap",
	"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Service", "DaemonSet", "Pod", "Deployment",
}

type strings_ []string

func (s *strings_) String() string     { return strings.Join(*s, " ") }
func (s *strings_) Set(v string) error { *s = append(*s, v); return nil }

// .Capabilities.KubeVersion: prints as its version, and has the fields that charts use.
type kubeVersion struct{ Version, Major, Minor string }

func (k kubeVersion) String() string { return k.Version }

type versions []string

func (v versions) Has(version string) bool {
	for _, one := range v {
		if one == version {
			return true
		}
	}
	return false
}

// .Files: what lies in the chart beside its templates. What is not there is empty, as with helm.
type chartFiles string

func (f chartFiles) Get(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(string(f), filepath.Clean("/"+name)))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

func main() {
	var files, sets, apis strings_
	name := flag.String("name", "shared-socket", "name of the release")
	namespace := flag.String("namespace", "default", "namespace of the release")
	kube := flag.String("kube-version", "1.34.0", "version of Kubernetes")
	notes := flag.Bool("notes", false, "print NOTES.txt and not the manifests")
	flag.Var(&files, "values", "a file of values; may be given again")
	flag.Var(&sets, "set", "a.b=VALUE, with VALUE in YAML; may be given again")
	flag.Var(&apis, "api-versions", "an API that the cluster has; may be given again")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: render [options] CHART")
		os.Exit(2)
	}
	out, err := render(flag.Arg(0), *name, *namespace, *kube, files, sets, apis, *notes)
	if err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
	fmt.Print(out)
}

func read(file string, into interface{}) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// What `over` says wins; maps are merged, all else is replaced, null takes a key away.
func merge(base, over values) values {
	for key, value := range over {
		if value == nil {
			delete(base, key)
			continue
		}
		old, oldMap := base[key].(values)
		if next, ok := value.(values); ok && oldMap {
			base[key] = merge(old, next)
		} else {
			base[key] = value
		}
	}
	return base
}

func set(into values, assignment string) error {
	parts := strings.SplitN(assignment, "=", 2)
	if len(parts) != 2 {
		return fmt.Errorf("--set %s: there is no `=`", assignment)
	}
	var value interface{}
	if err := yaml.Unmarshal([]byte(parts[1]), &value); err != nil {
		return fmt.Errorf("--set %s: %w", assignment, err)
	}
	keys := strings.Split(parts[0], ".")
	tree := values{keys[len(keys)-1]: value}
	for i := len(keys) - 2; i >= 0; i-- {
		tree = values{keys[i]: tree}
	}
	merge(into, tree)
	return nil
}

func render(chart, name, namespace, kube string, files, sets, apis []string, notes bool) (string, error) {
	about, vals := values{}, values{}
	if err := read(filepath.Join(chart, "Chart.yaml"), &about); err != nil {
		return "", err
	}
	if err := read(filepath.Join(chart, "values.yaml"), &vals); err != nil {
		return "", err
	}
	for _, file := range files {
		over := values{}
		if err := read(file, &over); err != nil {
			return "", err
		}
		merge(vals, over)
	}
	for _, assignment := range sets {
		if err := set(vals, assignment); err != nil {
			return "", err
		}
	}
	version, err := semver.NewVersion(kube)
	if err != nil {
		return "", fmt.Errorf("--kube-version %s: %w", kube, err)
	}
	if wanted, ok := about["kubeVersion"].(string); ok {
		constraint, err := semver.NewConstraint(wanted)
		if err != nil {
			return "", fmt.Errorf("Chart.yaml: kubeVersion: %w", err)
		}
		if !constraint.Check(version) {
			return "", fmt.Errorf("the chart wants Kubernetes %s, this is %s", wanted, kube)
		}
	}
	meta := values{}
	for key, value := range about {
		meta[strings.ToUpper(key[:1])+key[1:]] = value
	}
	title := fmt.Sprint(about["name"])
	context := values{
		"Values": vals,
		"Chart":  meta,
		"Files":  chartFiles(chart),
		"Release": values{
			"Name": name, "Namespace": namespace, "Service": "Helm", "Revision": 1, "IsInstall": true, "IsUpgrade": false,
		},
		"Capabilities": values{
			"KubeVersion": kubeVersion{"v" + version.String(), fmt.Sprint(version.Major()), fmt.Sprint(version.Minor())},
			"APIVersions": versions(apis),
		},
	}

	found, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", errors.New("the chart has no templates")
	}
	sort.Strings(found)
	all := template.New(title).Option("missingkey=zero")
	all.Funcs(functions(all))
	names := []string{}
	for _, file := range found {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		name := path.Join(title, "templates", filepath.Base(file))
		if _, err := all.New(name).Parse(string(text)); err != nil {
			return "", err
		}
		names = append(names, name)
	}

	type document struct {
		source, text string
		rank         int
	}
	var documents []document
	for _, name := range names {
		base := path.Base(name)
		isNotes := base == "NOTES.txt"
		if strings.HasPrefix(base, "_") || isNotes != notes {
			continue
		}
		var out bytes.Buffer
		here := merge(values{"Template": values{"Name": name, "BasePath": path.Dir(name)}}, context)
		if err := all.ExecuteTemplate(&out, name, here); err != nil {
			return "", err
		}
		// as helm does: a missing key is nothing, and not the words for it
		text := strings.ReplaceAll(out.String(), "<no value>", "")
		if notes {
			return text, nil
		}
		for _, part := range strings.Split("\n"+text, "\n---") {
			part = strings.Trim(part, "\n")
			head := struct{ Kind string }{}
			if err := yaml.Unmarshal([]byte(part), &head); err != nil {
				return "", fmt.Errorf("%s is not YAML: %w\n%s", name, err, part)
			}
			if head.Kind == "" {
				continue // a template that renders nothing
			}
			rank := len(order)
			for at, kind := range order {
				if kind == head.Kind {
					rank = at
				}
			}
			documents = append(documents, document{name, part, rank})
		}
	}
	sort.SliceStable(documents, func(i, j int) bool { return documents[i].rank < documents[j].rank })
	var out strings.Builder
	for _, d := range documents {
		fmt.Fprintf(&out, "---\n# Source: %s\n%s\n", d.source, d.text)
	}
	return out.String(), nil
}

// sprig's functions without those that look at this machine, and Helm's own.
func functions(all *template.Template) template.FuncMap {
	f := sprig.TxtFuncMap()
	for _, name := range []string{"env", "expandenv", "getHostByName"} {
		delete(f, name)
	}
	f["toYaml"] = func(v interface{}) string {
		text, err := yaml.Marshal(v)
		if err != nil {
			return ""
		}
		return strings.TrimSuffix(string(text), "\n")
	}
	f["fromYaml"] = func(text string) values {
		v := values{}
		if err := yaml.Unmarshal([]byte(text), &v); err != nil {
			v["Error"] = err.Error()
		}
		return v
	}
	f["toJson"] = func(v interface{}) string {
		text, err := json.Marshal(v)
		if err != nil {
			return ""
		}
		return string(text)
	}
	f["include"] = func(name string, data interface{}) (string, error) {
		var out strings.Builder
		err := all.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	f["tpl"] = func(text string, data interface{}) (string, error) {
		clone, err := all.Clone()
		if err != nil {
			return "", err
		}
		one, err := clone.New("tpl").Parse(text)
		if err != nil {
			return "", err
		}
		var out strings.Builder
		err = one.Execute(&out, data)
		return out.String(), err
	}
	f["required"] = func(message string, v interface{}) (interface{}, error) {
		if text, ok := v.(string); v == nil || ok && text == "" {
			return nil, errors.New(message)
		}
		return v, nil
	}
	f["lookup"] = func(string, string, string, string) (values, error) { return values{}, nil }
	return f
}
